//! Provisioning: the steps of a configuration, each run once in a machine that is never a VM and
//! kept as a layer on which disks are based.
//!
//! The last layer takes the base image's place: the warm template is baked on it, so a new VM is
//! restored with everything installed and its services running.

mod end;
mod inputs;
mod mask;
mod output;
mod run;
mod secrets;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::config::{ProvisionStep, Proxy, StepAction};
use crate::files::Lock;
use crate::guest::proxies_for_guest;
use crate::guest::ssh::Target;
use crate::hex::hex;
use crate::layout::CacheLayout;
use crate::qemu::{AcceleratorChoice, MachineSpec, Network, Qcow2Header, QemuBinary};
use crate::report::{Event, ImageLabel};
use crate::template::{
    Damage, Foundation, StepIngredients, StepLayer, StepRequest, TemplateError, make_step,
    recognise_step, remove_unfinished_steps, try_step,
};
use crate::vm::disk::{Base, confirm, layer};
use crate::vm::error::{ProvisionError, VmError};
use crate::vm::kernel::{Boots, of_new_disk};
use crate::vm::plan::VmPlan;
use crate::vm::project::ProjectRef;
use crate::vm::record::{LayerRecord, ProvisionRecord, Record};

use super::machine::machine;
use super::warm::image_label;

pub use secrets::{UngrantedSecret, grant_secrets, ungranted_secrets};

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
            return Err(ProvisionError::NoAgent { vm: self.vm().into() }.into());
        }
        self.clear_unfinished();
        let steps = &self.plan.definition.provision;
        let (vm, cancel) = (self.vm(), self.project.cancel());
        // Before anything is read, so that a change meanwhile is one of the stamp.
        let stamp = digest_with(steps, |step| inputs::stamp(step, &vm, cancel))?;
        let (layers, all_inputs) = self.layers_of(steps)?;
        let digest = digest_of(steps, &all_inputs);
        Ok(ProvisionRecord { digest, stamp: Some(stamp), layers })
    }

    /// Removes what a castra that was killed in a step has left. The step may have changed since.
    fn clear_unfinished(&self) {
        let (context, steps) = (self.project.context, self.project.context.cache.steps());
        if let Err(error) = remove_unfinished_steps(&context.cache, &steps, &context.runtime_root) {
            tracing::debug!(%error, "unfinished layers stay");
        }
    }

    /// Ensures that the layers of these first steps are in the project. Returns them, and the
    /// digests of what the steps read.
    fn layers_of(
        &self,
        steps: &[ProvisionStep],
    ) -> Result<(Vec<LayerRecord>, Vec<Option<String>>), VmError> {
        let (vm, cancel) = (self.vm(), self.project.cancel());
        let (mut layers, mut all_inputs) = (Vec::<LayerRecord>::new(), Vec::new());
        for (index, step) in steps.iter().enumerate() {
            let inputs = inputs::digest(&step.action, &vm, cancel)?;
            let planned = self.plan_step(step, index + 1, inputs.clone(), layers.last())?;
            layers.push(self.layer(&planned, steps)?);
            all_inputs.push(inputs);
        }
        Ok((layers, all_inputs))
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
            &self.spec(step, self.boots),
            disk_bytes,
            canonical(&step.action),
            inputs.clone(),
        );
        let ingredients = ingredients.with_secrets(names_of_secrets(step));
        Ok(Planned { step, number, inputs, ingredients, foundation, backing_file })
    }

    /// Returns the layer of a step, brought into the project. A cache that cannot be written to is
    /// replaced by the project's own, as for images.
    fn layer(
        &self,
        planned: &Planned<'_>,
        wanted: &[ProvisionStep],
    ) -> Result<LayerRecord, VmError> {
        self.in_cache(|cache| self.layer_in(cache, planned, wanted))
    }

    /// Does something in the user's cache, or in the project's own if that cannot be written to.
    fn in_cache<T>(&self, work: impl Fn(&CacheLayout) -> Result<T, VmError>) -> Result<T, VmError> {
        match work(&self.project.context.cache) {
            Err(VmError::Template(error)) if error.is_unwritable() => {
                work(&self.project.layout.own_cache())
            }
            outcome => outcome,
        }
    }

    fn layer_in(
        &self,
        cache: &CacheLayout,
        planned: &Planned<'_>,
        wanted: &[ProvisionStep],
    ) -> Result<LayerRecord, VmError> {
        let key = planned.ingredients.key();
        let found = self.open(cache, &key)?;
        let layer = match found {
            Some(layer) => {
                self.report_step(planned, true);
                layer
            }
            None => self.make_in(cache, planned, wanted, &key)?,
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
        wanted: &[ProvisionStep],
        key: &str,
    ) -> Result<StepLayer, VmError> {
        let report_wait = || {
            let what = "another castra running the same step".to_owned();
            self.project.report(&Event::Waiting { what });
        };
        let path = cache.step_lock(key);
        let lock = Lock::acquire_removable(&path, self.project.cancel(), report_wait)
            .map_err(TemplateError::from)?;
        // The last holder of the lock has probably made it.
        if let Ok(Some(layer)) = StepLayer::open(&cache.steps(), key) {
            self.report_step(planned, true);
            return Ok(layer);
        }
        // The steps above will have to run, too: before this one has taken its time.
        let number = planned.number;
        secrets::check(&wanted[number - 1..], number, &self.vm(), self.project.context)?;
        self.report_step(planned, false);
        if planned.number == 1 {
            // Disks will be based on the image: this one time it is hashed whatever its stamp says.
            confirm(self.base.clone(), self.project)?;
        }
        let made = self.with_machine(cache, planned, &|| lock.is_on(&path), |request, run| {
            make_step(request, |machine| run.drive(machine))
        })?;
        self.project.report(&Event::ProvisionStepDone {
            vm: self.vm(),
            step: planned.number,
            of: self.plan.definition.provision.len(),
            took_ms: made.manifest.took_ms,
            bytes: made.manifest.disk.allocated_bytes,
        });
        Ok(made)
    }

    /// Prepares the machine of a step.
    fn with_machine<T>(
        &self,
        cache: &CacheLayout,
        planned: &Planned<'_>,
        is_alone: &dyn Fn() -> bool,
        work: impl FnOnce(&StepRequest<'_>, &StepRun<'_>) -> Result<T, VmError>,
    ) -> Result<T, VmError> {
        let now = self.boots_of(&planned.foundation, planned.number)?;
        let boots = now.as_ref().unwrap_or(self.boots);
        let spec = self.spec(planned.step, boots);
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
            secrets: secrets::variables(planned.step, self.project.context),
            masked: secrets::masked(&self.plan.definition.provision, self.project.context),
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
            is_alone,
        };
        work(&request, &run)
    }

    /// Runs `work` in a machine on the disk that a step finds, or on that of all steps for the
    /// number after the last one. Whatever is written to the disk is discarded.
    ///
    /// # Errors
    /// [`ProvisionError`], or errors of making the layers of earlier steps, which are kept.
    pub(in crate::vm) fn before_step<T>(
        &self,
        number: usize,
        work: &dyn Fn(&Target) -> T,
    ) -> Result<T, VmError> {
        if !self.boots.has_agent() {
            return Err(ProvisionError::NoAgent { vm: self.vm().into() }.into());
        }
        let steps = &self.plan.definition.provision;
        let nothing = StepAction::Run(String::new()).alone();
        let step = steps.get(number - 1).unwrap_or(&nothing);
        secrets::check(std::slice::from_ref(step), number, &self.vm(), self.project.context)?;
        let (layers, _) = self.layers_of(&steps[..number - 1])?;
        let planned = self.plan_step(step, number, None, layers.last())?;
        self.in_cache(|cache| {
            self.with_machine(cache, &planned, &|| true, |request, run| {
                try_step(request, |machine| run.open(machine, work))
            })
        })
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
            false => Err(ProvisionError::NoAgent { vm: self.vm().into() }.into()),
        }
    }

    fn kernel_digests(&self) -> Vec<String> {
        let digests = self.boots.record().map(|kernel| kernel.digests().map(str::to_owned));
        digests.into_iter().flatten().collect()
    }

    fn label(&self) -> ImageLabel {
        image_label(self.base)
    }

    /// Returns the machine of a step. That of an isolated VM is always isolated.
    fn spec(&self, step: &ProvisionStep, boots: &Boots) -> MachineSpec {
        let files = &self.project.files(&self.vm());
        let image = self.base.image.as_ref();
        let mut spec = machine(self.plan, image, boots, files, self.choice, None);
        spec.network = match self.network {
            Network::Full => step.network,
            Network::Isolated => Network::Isolated,
        };
        // The steps' disk is for VMs with and without any.
        spec.data_disks.clear();
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
    // What cannot be read is an error only for a new disk.
    let same = is_made_by(&plan.definition.provision, record.provisioned.as_ref(), vm, project);
    let same = same.unwrap_or(false);
    if !same {
        let message = format!(
            "the disk of VM `{vm}` was made by other steps than `provision` now has, or from \
            other files; it stays as it is. To give it up and get a new one: castra down {vm} && \
            castra clean --disks {vm} && castra up {vm}"
        );
        project.report(&Event::Warning { message });
    }
}

/// Returns `true` if the layers of a disk are those of these steps.
fn is_made_by(
    steps: &[ProvisionStep],
    made: Option<&ProvisionRecord>,
    vm: &str,
    project: ProjectRef<'_>,
) -> Result<bool, VmError> {
    let Some(made) = made else { return Ok(steps.is_empty()) };
    let cancel = project.cancel();
    let stamp = digest_with(steps, |step| inputs::stamp(step, vm, cancel))?;
    if made.stamp == Some(stamp) {
        return Ok(true);
    }
    Ok(digest_with(steps, |step| inputs::digest(step, vm, cancel))? == made.digest)
}

/// Returns the digest of all steps with what `inputs` returns of the files that they read.
fn digest_with(
    steps: &[ProvisionStep],
    inputs: impl Fn(&StepAction) -> Result<Option<String>, VmError>,
) -> Result<String, VmError> {
    let inputs: Result<Vec<_>, _> = steps.iter().map(|step| inputs(&step.action)).collect();
    Ok(digest_of(steps, &inputs?))
}

fn digest_of(steps: &[ProvisionStep], inputs: &[Option<String>]) -> String {
    let of_step = |step: &ProvisionStep| {
        let is_isolated = step.network == Network::Isolated;
        (canonical(&step.action), names_of_secrets(step), is_isolated)
    };
    let steps: Vec<_> = steps.iter().map(of_step).collect();
    hex(&Sha256::digest(serde_json::to_vec(&(steps, inputs)).unwrap_or_default()))
}

fn names_of_secrets(step: &ProvisionStep) -> Vec<String> {
    step.secrets.iter().map(|secret| secret.name.clone()).collect()
}

/// Returns the work of a step as a text that no other has. What it reads has a digest of its own,
/// whatever its place on this machine.
fn canonical(action: &StepAction) -> String {
    match action {
        StepAction::Run(command) => format!("run {command}"),
        StepAction::Script(_) => "script".to_owned(),
        StepAction::Copy { to, .. } => format!("copy {to}"),
    }
}
