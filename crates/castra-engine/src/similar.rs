//! "Did you mean …?" suggestions.

/// Returns the candidate that the user may have meant: one with a few wrong letters, else one that
/// contains the text, perhaps without a plural s (`ports` for `port_forwards`, `image` for
/// `managed_image`). Returns `None` if none is near.
pub(crate) fn closest<'a>(
    text: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let text = text.to_lowercase();
    let singular = text.trim_end_matches('s');
    // A third of the letters may be wrong: `pot_forwards` finds `port_forwards`, `foo` does not
    // find `cpus`.
    let tolerance = (text.chars().count() / 3).max(1);
    let distance_to = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        let distance = strsim::damerau_levenshtein(&text, &candidate);
        let related = singular.len() >= 3 && candidate.contains(singular);
        (distance <= tolerance || related).then_some((distance > tolerance, distance))
    };
    candidates
        .into_iter()
        .filter_map(|candidate| distance_to(candidate).map(|distance| (distance, candidate)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 7] =
        ["name", "managed_image", "base_image", "cpus", "memory", "disk", "port_forwards"];

    #[test]
    fn what_the_writer_may_have_meant() {
        for (written, meant) in [
            ("cpu", Some("cpus")),
            ("CPUs", Some("cpus")),
            ("mem", Some("memory")),
            ("pot_forwards", Some("port_forwards")),
            ("ports", Some("port_forwards")),
            ("managed-image", Some("managed_image")),
            ("base", Some("base_image")),
            ("foo", None),
            ("bootstrap", None),
            ("sss", None),
            ("", None),
        ] {
            assert_eq!(closest(written, KEYS), meant, "{written}");
        }
    }

    #[test]
    fn swapped_letters_of_a_short_name_are_seen_through() {
        assert_eq!(closest("tow", ["one", "two"]), Some("two"));
    }
}
