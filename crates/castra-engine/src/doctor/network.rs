//! Sources of the default images: each is contacted, within a limit.

use crate::context::RuntimeContext;
use crate::error::Explain as _;
use crate::error::one_line;
use crate::managed::{Catalog, ImageManager};

use super::{Area, Finding};

pub(super) fn check(context: &RuntimeContext) -> Vec<Finding> {
    if context.offline {
        return vec![Finding::note(Area::Network, "network", "network not checked: offline")];
    }
    let manager = ImageManager::new(&context.cache.runs());
    let catalog = Catalog::builtin();
    let candidates = catalog.default_candidates();
    let is_here = candidates.iter().any(|spec| manager.is_cached(spec, context));
    let answers: Vec<_> =
        candidates.iter().map(|spec| (spec, manager.ask(spec, context))).collect();
    let can_be_had = answers.iter().any(|(_, answer)| answer.is_ok());
    let finding = |(spec, answer): (
        &crate::managed::ManagedImageSpec,
        Result<(), crate::managed::ImageError>,
    )| {
        let image = spec.label();
        match answer {
            Ok(()) => Finding::good(Area::Network, "source", format!("{image} can be fetched")),
            Err(error) => {
                let message = format!("{image} cannot be fetched: {}", one_line(&error));
                // One source is enough, and none is needed if an image is cached.
                let severity = match (can_be_had, is_here) {
                    (true, _) => Finding::note,
                    (false, true) => Finding::warning,
                    (false, false) => Finding::problem,
                };
                let finding = severity(Area::Network, "source", message);
                finding.with_hint(error.hint().filter(|_| !can_be_had))
            }
        }
    };
    answers.into_iter().map(finding).collect()
}
