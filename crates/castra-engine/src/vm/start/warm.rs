//! Warm template that a fresh VM is restored from: found, or made.
//!
//! A VM can boot without one, so the only error here is an interruption. A failure is reported in
//! one line, recorded if it will last, and the VM boots cold.

use std::path::{Path, PathBuf};
use std::time::Duration;

use castra_wire::GuestMessage;

use crate::files::Lock;
use crate::layout::{CacheLayout, TemplatesLayout};
use crate::managed::{ImageManager, Manifest};
use crate::qemu::{AcceleratorChoice, MachineSpec, Network, Qcow2Header, QemuBinary};
use crate::report::{Event, ImageLabel};
use crate::sanitize::sanitize_text;
use crate::template::{self, BakeRequest, Damage, Ingredients, OwnKernel, Template, TemplateError};
use crate::vm::diagnosis::Words;
use crate::vm::disk::{Base, layer};
use crate::vm::kernel::Boots;
use crate::vm::plan::VmPlan;
use crate::vm::project::ProjectRef;
use crate::vm::record::LayerRecord;
use crate::vm::timeline::Stopwatch;

use super::limits::Limits;
use super::machine::machine;
use super::session::record_times;
use super::watch::has_given_up;

/// Digits of an own disk's digest in the label of its template.
const LABEL_DIGITS: usize = 12;

/// A template, with its disk in the project.
pub(in crate::vm) struct Warm {
    pub(in crate::vm) template: Template,
    pub(in crate::vm) layer: LayerRecord,
}

/// Inputs for finding or making a VM's template.
pub(in crate::vm) struct Warming<'a> {
    pub(in crate::vm) plan: &'a VmPlan,
    pub(in crate::vm) base: &'a Base,
    /// Layer of the VM's last step, if its disk is provisioned.
    pub(in crate::vm) provisioned: Option<&'a LayerRecord>,
    pub(in crate::vm) boots: &'a Boots,
    pub(in crate::vm) binary: &'a QemuBinary,
    pub(in crate::vm) choice: &'a AcceleratorChoice,
    pub(in crate::vm) project: ProjectRef<'a>,
    pub(in crate::vm) limit: Option<Duration>,
}

impl Warming<'_> {
    /// Returns the VM's template, made if there is none, or `None` if there cannot be one, which is
    /// then reported.
    ///
    /// # Errors
    /// Returns an interruption.
    pub(in crate::vm) fn template(&self) -> Result<Option<Warm>, TemplateError> {
        let Some(ingredients) = self.ingredients() else { return Ok(None) };
        let key = ingredients.key();
        // A cache that cannot be written to is replaced by the project's own, as for images.
        let mut failure = None;
        for cache in [self.project.context.cache.clone(), self.project.layout.own_cache()] {
            if let Some(refusal) = template::refusal(&cache.templates(), &key) {
                tracing::debug!(key, reason = refusal.reason, "template refused");
                let (vm, reason) = (self.vm(), refusal.reason);
                self.report(Event::TemplateRefused { vm, reason });
                return Ok(None);
            }
            match self.template_in(&cache, &ingredients, &key) {
                Ok(warm) => return Ok(Some(warm)),
                Err(error) if error.is_interruption() => return Err(error),
                Err(error) if error.is_lasting() => {
                    template::refuse(&cache.templates(), &key, &error.to_string());
                    failure = Some(error);
                    break;
                }
                Err(error) => {
                    let is_unwritable = error.is_unwritable();
                    failure = Some(error);
                    if !is_unwritable {
                        break;
                    }
                }
            }
        }
        if let Some(error) = failure {
            self.warn(format!("VM `{}` boots without a warm template: {error}", self.vm()));
        }
        Ok(None)
    }

    fn ingredients(&self) -> Option<Ingredients> {
        // A disk smaller than the image's gets the image's size.
        let base = Qcow2Header::read(&self.foundation()).ok()?.virtual_bytes;
        let disk_bytes = self.plan.definition.disk_bytes.max(base);
        let ingredients = match &self.base.image {
            Some((_, paths)) => {
                let manifest = Manifest::load(&paths.directory).ok()?;
                Ingredients::of(&self.spec(), &manifest, disk_bytes, self.binary)
            }
            None => {
                let label = image_label(self.base);
                Ingredients::of_disk(&self.spec(), label, disk_bytes, self.binary)
            }
        };
        let layer = self.provisioned.map(|layer| layer.sha256.clone());
        let data_disks = self.plan.definition.data_disks.iter();
        let data_disks = data_disks.map(|disk| (disk.name.clone(), disk.size_bytes)).collect();
        let ingredients = ingredients.with_provisioned(layer).with_data_disks(data_disks);
        let Some(kernel) = self.boots.record() else { return Some(ingredients) };
        let seed = self.boots.seed().map(|seed| format!("seed {}", seed.digest()));
        Some(ingredients.with_own_kernel(OwnKernel {
            files: kernel.digests().map(str::to_owned).chain(seed).collect(),
            content: self.base.record.content.clone(),
            backing_file: self.backing_file().into_os_string().into_string().ok()?,
        }))
    }

    /// Returns the disk that the template is based on.
    fn foundation(&self) -> PathBuf {
        let layer = self.provisioned.map(|layer| self.project.layout.layer(&layer.sha256));
        layer.unwrap_or_else(|| self.base.disk.clone())
    }

    /// Returns its path as seen from the template's directory in a project.
    fn backing_file(&self) -> PathBuf {
        match self.provisioned {
            Some(layer) => layer::seen_from_layer(&layer.sha256),
            None => layer::base_seen_from_layer(self.base, self.project.layout),
        }
    }

    fn spec(&self) -> MachineSpec {
        let files = &self.project.files(&self.vm());
        machine(self.plan, self.base.image.as_ref(), self.boots, files, self.choice, None)
    }

    /// Returns the network in which the template is made. The user's data for cloud-init may
    /// install packages.
    fn network_of_template(&self) -> Network {
        if self.boots.seed().is_some() { Network::Full } else { Network::Isolated }
    }

    fn template_in(
        &self,
        cache: &CacheLayout,
        ingredients: &Ingredients,
        key: &str,
    ) -> Result<Warm, TemplateError> {
        let template = match self.open(cache, key)? {
            Some(template) => {
                tracing::debug!(key, "template hit");
                template
            }
            None => {
                tracing::debug!(key, "template miss: there is no intact one of this shape");
                self.bake_in(cache, ingredients, key)?
            }
        };
        let layer = layer::bring(&template, self.project)?;
        Ok(Warm { template, layer })
    }

    /// Opens the template if it is present and intact; copies of its files are hashed first. A
    /// damaged one is reported, and will be rebuilt.
    fn open(&self, cache: &CacheLayout, key: &str) -> Result<Option<Template>, TemplateError> {
        let opened = match Template::open(&cache.templates(), key) {
            Err(Damage::Unverified(_)) => {
                self.report(Event::TemplateVerifying { vm: self.vm() });
                template::recognise(cache, key, self.project.cancel())?
            }
            opened => opened,
        };
        Ok(opened.unwrap_or_else(|damage| {
            self.warn(format!("the warm template of VM `{}` {damage}; rebuilding it", self.vm()));
            None
        }))
    }

    fn bake_in(
        &self,
        cache: &CacheLayout,
        ingredients: &Ingredients,
        key: &str,
    ) -> Result<Template, TemplateError> {
        let what = "another castra preparing the same warm template".to_owned();
        let report_wait = || self.report(Event::Waiting { what });
        let path = cache.lock(&format!("template-{key}"));
        let lock = Lock::acquire(&path, self.project.cancel(), report_wait)?;
        // The last holder of the lock has probably made it.
        if let Ok(Some(template)) = Template::open(&cache.templates(), key) {
            return Ok(template);
        }
        self.report(Event::TemplateBaking { vm: self.vm() });
        // Disks will be based on the image: this one time it is hashed whatever its stamp says.
        if let Some((spec, paths)) = &self.base.image {
            ImageManager::new(self.project.layout).confirm_disk(
                spec,
                paths.clone(),
                self.project.context,
            )?;
        }
        let vm = self.vm();
        let stopwatch = Stopwatch::of_template(&vm, &self.project.context.reporter);
        let on_message = |message: &GuestMessage| record_times(message, &stopwatch);
        let (memory_mib, accelerator) =
            (self.plan.definition.memory_bytes >> 20, self.choice.accelerator);
        let has_given_up = |console: &Path, log: &Path| {
            has_given_up(&vm, memory_mib, accelerator, &Words::read(console, log))
        };
        let baked = template::bake(&BakeRequest {
            ingredients: ingredients.clone(),
            spec: &self.spec(),
            provide_kernel: &|work| self.boots.provide_template(work),
            base_disk: &self.foundation(),
            backing_file: &self.backing_file(),
            binary: self.binary,
            cache,
            context: self.project.context,
            is_alone: &|| lock.is_on(&path),
            network: self.network_of_template(),
            limit: Limits::new(accelerator, self.plan.definition.cpus, self.limit).ready,
            on_message: &on_message,
            has_failed: &has_given_up,
        })?;
        let (vm, boot_ms) = (self.vm(), baked.manifest.boot_ms);
        self.report(Event::TemplateBaked { vm, boot_ms, bytes: baked.manifest.allocated_bytes() });
        Ok(baked)
    }

    fn vm(&self) -> String {
        self.plan.definition.name.clone()
    }

    fn report(&self, event: Event) {
        self.project.report(&event);
    }

    fn warn(&self, message: String) {
        self.report(Event::Warning { message });
    }
}

/// Returns the label of an image. The user's own disk has no name but its file's.
pub(in crate::vm) fn image_label(base: &Base) -> ImageLabel {
    if let Some((spec, _)) = &base.image {
        return spec.label();
    }
    let name = base.disk.file_name().unwrap_or_default().to_string_lossy();
    let version = base.record.content.get(..LABEL_DIGITS).unwrap_or_default().to_owned();
    ImageLabel { id: sanitize_text(&name), version }
}

/// Removes a template that could not be restored, and keeps it from being made again for a while.
pub(in crate::vm) fn refuse_template(warm: &Warm, reason: &str) {
    let (layout, key) = (&warm.template.layout, &warm.template.manifest.key);
    let Some(root) = layout.directory().parent() else { return };
    let templates = TemplatesLayout::new(root.to_owned());
    // A template that is gone or was changed meanwhile is not to blame.
    if !matches!(Template::open(&templates, key), Ok(Some(_))) {
        return;
    }
    template::refuse(&templates, key, reason);
    // Needs no lock: a concurrent reader finds it intact or not at all, and if it cannot be removed
    // it is refused all the same.
    let _ = template::discard(&templates, key);
}
