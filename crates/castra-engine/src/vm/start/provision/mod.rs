//! Provisioning: the steps of a configuration, each run once in a machine that is never a VM and
//! kept as a layer on which disks are based.
//!
//! The last layer takes the base image's place: the warm template is baked on it, so a new VM is
//! restored with everything installed and its services running.

mod end;
mod inputs;
mod output;
mod run;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::cancel::Cancel;
use crate::config::{ProvisionStep, Proxy};
use crate::files::Lock;
use crate::guest::proxies_for_guest;
use crate::hex::hex;
use crate::layout::CacheLayout;
use crate::qemu::{AcceleratorChoice, MachineSpec, Network, Qcow2Header, QemuBinary};
use crate::report::{Event, ImageLabel};
use crate::template::{
    Damage, Foundation, StepIngredients, StepLayer, StepRequest, TemplateError, make_step,
    recognise_step,
};
use crate::vm::disk::{Base, confirm, layer};
use crate::vm::error::{ProvisionError, VmError};
use crate::vm::kernel::{Boots, of_new_disk};
use crate::vm::plan::VmPlan;
use crate::vm::project::ProjectRef;
use crate::vm::record::{LayerRecord, ProvisionRecord, Record};

use super::machine::machine;
use super::warm::image_label;

use run::StepRun;

/// Inputs for finding or making the layers of a VM's steps.
pub(in crate::vm) struct Provisioning<'a> {
    pub(in crate::vm) plan: &'a VmPlan,
    pub(in crate::vm) base: &'a Base,
    pub(in crate::vm) boots: &'a Boots,
    pub(in crate::vm) binary: &'a QemuBinary,
    pub(in crate::vm) choice: &'a AcceleratorChoice,
    pub(in crate::vm) project: ProjectRef<'a>,
    pub(in crate::vm) network: Network,
    pub(in crate::vm) limit: Option<Duration>,
}

/// A step of the plan, with what its layer depends on.
struct Planned<'a> {
    step: &'a ProvisionStep,
    /// Number, from 1.
    number: usize,
    inputs: Option<String>,
    ingredients: StepIngredients,
    /// Disk below, and its path as seen from a layer's directory.
    foundation: PathBuf,
    backing_file: PathBuf,
}

impl Provisioning<'_> {
    /// Ensures that the layers of all steps are in the project, and makes those that are missing.
    ///
    /// # Errors
    /// [`ProvisionError`], or errors of making a layer. Layers of earlier steps are kept.
    pub(in crate::vm) fn layers(&self) -> Result<ProvisionRecord, VmError> {
        if !self.boots.has_agent() {
            return Err(ProvisionError::NoAgent { vm: self.vm() }.into());
        }
        let steps = &self.plan.definition.provision;
        let (mut layers, mut all_inputs) = (Vec::<LayerRecord>::new(), Vec::new());
        for (index, step) in steps.iter().enumerate() {
            let inputs = inputs::digest(step, &self.vm(), self.project.cancel())?;
            let planned = self.plan_step(step, index + 1, inputs.clone(), layers.last())?;
            layers.push(self.layer(&planned)?);
            all_inputs.push(inputs);
        }
        Ok(ProvisionRecord { digest: digest_of(steps, &all_inputs), layers })
    }

    fn plan_step<'s>(
        &self,
        step: &'s ProvisionStep,
        number: usize,
        inputs: Option<String>,
        below: Option<&LayerRecord>,
    ) -> Result<Planned<'s>, VmError> {
        let (foundation, backing_file, on) = match below {
            Some(layer) => {
                let sha256 = layer.sha256.clone();
                let path = self.project.layout.layer(&sha256);
                (path, layer::seen_from_layer(&sha256), Foundation::Layer { sha256 })
            }
            None => {
                let backing_file = layer::base_seen_from_layer(self.base, self.project.layout);
                let on = Foundation::Base {
                    content: self.base.record.content.clone(),
                    backing_file: backing_file.to_string_lossy().into_owned(),
                    kernel: self.kernel_digests(),
                };
                (self.base.disk.clone(), backing_file, on)
            }
        };
        let size = Qcow2Header::read(&foundation)?.virtual_bytes;
        let disk_bytes = self.plan.definition.disk_bytes.max(size);
        let ingredients = StepIngredients::new(
            self.label(),
            on,
            &self.spec(self.boots),
            disk_bytes,
            canonical(step),
            inputs.clone(),
        );
        Ok(Planned { step, number, inputs, ingredients, foundation, backing_file })
    }

    /// Returns the layer of a step, brought into the project. A cache that cannot be written to is
    /// replaced by the project's own, as for images.
    fn layer(&self, planned: &Planned<'_>) -> Result<LayerRecord, VmError> {
        let user = self.project.context.cache.clone();
        match self.layer_in(&user, planned) {
            Err(VmError::Template(error)) if error.is_unwritable() => {
                self.layer_in(&self.project.layout.own_cache(), planned)
            }
            outcome => outcome,
        }
    }

    fn layer_in(&self, cache: &CacheLayout, planned: &Planned<'_>) -> Result<LayerRecord, VmError> {
        let key = planned.ingredients.key();
        let found = self.open(cache, &key)?;
        let layer = match found {
            Some(layer) => {
                self.report_step(planned, true);
                layer
            }
            None => self.make_in(cache, planned, &key)?,
        };
        let (file, disk) = (&layer.manifest.disk, layer.layout.disk());
        Ok(layer::bring_file(&key, file, &disk, self.project)?)
    }

    /// Opens the layer if it is present and intact; a copy is hashed first. A damaged one is
    /// reported, and will be made again.
    fn open(&self, cache: &CacheLayout, key: &str) -> Result<Option<StepLayer>, VmError> {
        let opened = match StepLayer::open(&cache.steps(), key) {
            Err(Damage::Unverified(_)) => recognise_step(cache, key, self.project.cancel())?,
            opened => opened,
        };
        Ok(opened.unwrap_or_else(|damage| {
            let message = format!("the layer {key} {damage}; making it again");
            self.project.report(&Event::Warning { message });
            None
        }))
    }

    fn make_in(
        &self,
        cache: &CacheLayout,
        planned: &Planned<'_>,
        key: &str,
    ) -> Result<StepLayer, VmError> {
        let what = "another castra running the same step".to_owned();
        let report_wait = || self.project.report(&Event::Waiting { what });
        let path = cache.step_lock(key);
        let lock = Lock::acquire(&path, self.project.cancel(), report_wait)
            .map_err(TemplateError::from)?;
        // The last holder of the lock has probably made it.
        if let Ok(Some(layer)) = StepLayer::open(&cache.steps(), key) {
            self.report_step(planned, true);
            return Ok(layer);
        }
        self.report_step(planned, false);
        if planned.number == 1 {
            // Disks will be based on the image: this one time it is hashed whatever its stamp says.
            confirm(self.base.clone(), self.project)?;
        }
        let now = self.boots_of(&planned.foundation, planned.number)?;
        let boots = now.as_ref().unwrap_or(self.boots);
        let spec = self.spec(boots);
        let run = StepRun {
            vm: self.vm(),
            step: planned.step,
            number: planned.number,
            of: self.plan.definition.provision.len(),
            inputs: planned.inputs.as_deref(),
            spec: &spec,
            environment: match self.plan.definition.proxy {
                Proxy::Host => proxies_for_guest(&self.project.context.environment),
                Proxy::None => Vec::new(),
            },
            limit: self.limit,
            context: self.project.context,
        };
        let request = StepRequest {
            ingredients: planned.ingredients.clone(),
            number: planned.number as u64,
            text: planned.step.to_string(),
            spec: &spec,
            provide_kernel: &|work| boots.provide_template(work),
            foundation: &planned.foundation,
            backing_file: &planned.backing_file,
            binary: self.binary,
            cache,
            context: self.project.context,
            is_alone: &|| lock.is_on(&path),
        };
        let made = make_step(&request, |machine| run.drive(machine))?;
        self.project.report(&Event::ProvisionStepDone {
            vm: self.vm(),
            step: planned.number,
            of: self.plan.definition.provision.len(),
            took_ms: made.manifest.took_ms,
            bytes: made.manifest.disk.allocated_bytes,
        });
        Ok(made)
    }

    /// Returns what boots from the disk of an earlier step, which may have installed a kernel.
    /// `None` for the first step, whose disk is the VM's base.
    fn boots_of(&self, disk: &Path, number: usize) -> Result<Option<Boots>, VmError> {
        if number == 1 {
            return Ok(None);
        }
        let (definition, image) = (&self.plan.definition, self.base.image.as_ref());
        let boots = of_new_disk(definition, image, disk, self.project.context)?.boots;
        match boots.has_agent() {
            true => Ok(Some(boots)),
            false => Err(ProvisionError::NoAgent { vm: self.vm() }.into()),
        }
    }

    fn kernel_digests(&self) -> Vec<String> {
        let digests = self.boots.record().map(|kernel| kernel.digests().map(str::to_owned));
        digests.into_iter().flatten().collect()
    }

    fn label(&self) -> ImageLabel {
        image_label(self.base)
    }

    fn spec(&self, boots: &Boots) -> MachineSpec {
        let files = &self.project.files(&self.vm());
        let image = self.base.image.as_ref();
        let mut spec = machine(self.plan, image, boots, files, self.choice, None);
        spec.network = self.network;
        spec
    }

    fn report_step(&self, planned: &Planned<'_>, cached: bool) {
        self.project.report(&Event::ProvisionStep {
            vm: self.vm(),
            step: planned.number,
            of: self.plan.definition.provision.len(),
            text: planned.step.to_string(),
            cached,
        });
    }

    fn vm(&self) -> String {
        self.plan.definition.name.clone()
    }
}

/// Warns if the disk of a VM was prepared by other steps than those of its definition. It stays as
/// it is: it may hold data.
pub(in crate::vm) fn warn_of_change(plan: &VmPlan, record: &Record, project: ProjectRef<'_>) {
    // A clone's disk is its original's.
    if record.cloned.is_some() {
        return;
    }
    let vm = &plan.definition.name;
    let same = match current_digest(&plan.definition.provision, vm, project.cancel()) {
        Ok(now) => now == record.provisioned.as_ref().map(|made| made.digest.clone()),
        // What cannot be read is an error only for a new disk.
        Err(_) => false,
    };
    if !same {
        let message = format!(
            "the disk of VM `{vm}` was made by other steps than `provision` now has, or from \
            other files; it stays as it is. To give it up and get a new one: castra down {vm} && \
            castra clean --disks {vm} && castra up {vm}"
        );
        project.report(&Event::Warning { message });
    }
}

/// Returns the digest of all steps with what they read; `None` if there are no steps.
fn current_digest(
    steps: &[ProvisionStep],
    vm: &str,
    cancel: &Cancel,
) -> Result<Option<String>, VmError> {
    if steps.is_empty() {
        return Ok(None);
    }
    let inputs: Result<Vec<_>, _> =
        steps.iter().map(|step| inputs::digest(step, vm, cancel)).collect();
    Ok(Some(digest_of(steps, &inputs?)))
}

fn digest_of(steps: &[ProvisionStep], inputs: &[Option<String>]) -> String {
    let steps: Vec<String> = steps.iter().map(canonical).collect();
    hex(&Sha256::digest(serde_json::to_vec(&(steps, inputs)).unwrap_or_default()))
}

/// Returns a step as a text that no other step has. What it reads has a digest of its own, whatever
/// its place on this machine.
fn canonical(step: &ProvisionStep) -> String {
    match step {
        ProvisionStep::Run(command) => format!("run {command}"),
        ProvisionStep::Script(_) => "script".to_owned(),
        ProvisionStep::Copy { to, .. } => format!("copy {to}"),
    }
}
