//! Secrets of steps: variables of castra's environment, which a step sees in its own.
//!
//! A `castra.toml` may come from a stranger, whose step could send away any variable that it names.
//! So each variable needs the user's consent, once for a project. A value is looked up when a step
//! must run, and goes from the environment to the step's program: no file, key, record or event
//! ever has it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{ProjectConfig, ProvisionStep, StepSecret, VmDefinition};
use crate::context::RuntimeContext;
use crate::vm::consents;
use crate::vm::error::{ProvisionError, VmError};

use super::mask::Masked;

/// Longest value, in bytes: with its name it is one string of the environment, for which Linux has
/// room for 128 KiB (`MAX_ARG_STRLEN`, `execve(2)`).
const MAX_BYTES: usize = 127 * 1024;

/// A consent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Grant {
    /// Directory of the project.
    project: Box<Path>,
    /// Variable that its steps may see.
    variable: String,
}

/// A variable that a step asks for without the user's consent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UngrantedSecret {
    /// VM of the step.
    pub vm: String,
    /// The step as one short line.
    pub step: String,
    /// True if the VM has no disk yet.
    pub is_of_new_disk: bool,
    secret: StepSecret,
}

impl UngrantedSecret {
    /// Returns the name of the variable.
    pub fn name(&self) -> &str {
        &self.secret.name
    }
}

/// Ensures that steps that are about to run have their secrets. `first` is the number of the first
/// one, from 1.
///
/// # Errors
/// [`ProvisionError::SecretsNotGranted`], [`ProvisionError::NoSecret`],
/// [`ProvisionError::LongSecret`].
pub(super) fn check(
    steps: &[ProvisionStep],
    first: usize,
    vm: &str,
    context: &RuntimeContext,
) -> Result<(), VmError> {
    let secrets = || steps.iter().flat_map(|step| &step.secrets);
    let mut ungranted: Vec<String> = secrets()
        .filter(|secret| !is_granted(secret, context))
        .map(|secret| secret.name.clone())
        .collect();
    ungranted.sort();
    ungranted.dedup();
    if !ungranted.is_empty() {
        let vm = vm.to_owned().into();
        return Err(ProvisionError::SecretsNotGranted { vm, variables: ungranted }.into());
    }
    for (step, number) in steps.iter().zip(first..) {
        for secret in &step.secrets {
            let (vm, text, name) = (vm.to_owned().into(), step.to_string(), secret.name.clone());
            match value(secret, context) {
                Some(value) if value.len() <= MAX_BYTES => {}
                Some(_) => return Err(ProvisionError::LongSecret { vm, number, name }.into()),
                None => return Err(ProvisionError::NoSecret { vm, number, text, name }.into()),
            }
        }
    }
    Ok(())
}

/// Returns the variables of a step's secrets.
pub(super) fn variables(
    step: &ProvisionStep,
    context: &RuntimeContext,
) -> Vec<(OsString, OsString)> {
    let variable = |secret: &StepSecret| {
        Some((OsString::from(&secret.name), value(secret, context)?.to_owned()))
    };
    step.secrets.iter().filter_map(variable).collect()
}

/// Returns what is masked in the output of a step: the secrets of all steps, since one may show
/// what another has written.
pub(super) fn masked(steps: &[ProvisionStep], context: &RuntimeContext) -> Masked {
    let secrets = steps.iter().flat_map(|step| &step.secrets);
    Masked::of(secrets.filter_map(|secret| value(secret, context)).map(OsStr::as_bytes))
}

/// Returns the value of a secret; an empty one counts as unset, as for any variable.
fn value<'a>(secret: &StepSecret, context: &'a RuntimeContext) -> Option<&'a OsStr> {
    context.environment.get(&secret.name).map(OsString::as_os_str)
}

/// Returns the secrets of these VMs, or of all, that lack the user's consent.
pub fn ungranted_secrets(
    names: &[String],
    config: &ProjectConfig,
    context: &RuntimeContext,
) -> Vec<UngrantedSecret> {
    let is_wanted = |vm: &&VmDefinition| names.is_empty() || names.contains(&vm.name);
    let mut found = Vec::<UngrantedSecret>::new();
    for vm in config.vms.iter().filter(is_wanted) {
        let is_of_new_disk = !vm.overlay.exists();
        for step in &vm.provision {
            for secret in step.secrets.iter().filter(|secret| !is_granted(secret, context)) {
                let (vm, step, secret) = (vm.name.clone(), step.to_string(), secret.clone());
                found.push(UngrantedSecret { vm, step, is_of_new_disk, secret });
            }
        }
    }
    found
}

/// Writes down that steps of the projects may see these variables.
///
/// # Errors
/// [`ProvisionError::Grant`].
pub fn grant_secrets(secrets: &[UngrantedSecret], context: &RuntimeContext) -> Result<(), VmError> {
    let grant = |secret: &StepSecret| {
        if is_granted(secret, context) {
            return Ok(());
        }
        let Some(state) = &context.user_state else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "HOME is not set"));
        };
        let variable = secret.name.clone();
        consents::add(&state.secrets(), &Grant { project: project_of(secret), variable })
    };
    let failed = |source| {
        let path = context.user_state.as_ref().map(|state| state.secrets()).unwrap_or_default();
        ProvisionError::Grant { path, source }
    };
    Ok(secrets.iter().try_for_each(|one| grant(&one.secret)).map_err(failed)?)
}

fn is_granted(secret: &StepSecret, context: &RuntimeContext) -> bool {
    let Some(state) = &context.user_state else { return false };
    let project = project_of(secret);
    consents::read::<Grant>(&state.secrets())
        .iter()
        .any(|grant| grant.project == project && grant.variable == secret.name)
}

/// Returns the real path of the directory of the project that asks for a secret.
fn project_of(secret: &StepSecret) -> Box<Path> {
    secret.root.canonicalize().unwrap_or_else(|_| secret.root.clone()).into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cancel::Cancel;
    use crate::config::StepAction;
    use crate::context::Environment;
    use crate::report::Silent;

    fn step(root: &Path, name: &str) -> ProvisionStep {
        let secrets = vec![StepSecret { name: name.to_owned(), root: root.to_owned() }];
        ProvisionStep { secrets, ..StepAction::Run("true".to_owned()).alone() }
    }

    fn ungranted(step: &ProvisionStep) -> UngrantedSecret {
        let secret = step.secrets[0].clone();
        UngrantedSecret { vm: "web".into(), step: step.to_string(), is_of_new_disk: true, secret }
    }

    fn problem(steps: &[ProvisionStep], context: &RuntimeContext) -> String {
        check(steps, 1, "web", context).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_consent_is_for_one_variable_of_one_project() {
        let home = tempfile::tempdir().expect("a directory");
        let environment =
            Environment::of([("HOME", home.path().as_os_str())]).with("A", "1").with("B", "2");
        let context = RuntimeContext::new(environment, Arc::new(Silent), Cancel::new());
        let context = context.expect("a home");
        let (a, b) = (step(home.path(), "A"), step(home.path(), "B"));
        assert!(problem(&[a.clone(), b.clone()], &context).contains("A, B"));
        grant_secrets(&[ungranted(&a)], &context).expect("written");
        assert_eq!(problem(std::slice::from_ref(&a), &context), "");
        assert!(problem(&[a, b], &context).contains("`web` B of"));
        let elsewhere = step(&home.path().join("other"), "A");
        assert_ne!(problem(&[elsewhere], &context), "");
    }

    #[test]
    fn a_secret_without_a_value_is_missing_and_a_huge_one_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let environment = Environment::of([("HOME", home.path().as_os_str())])
            .with("EMPTY", "")
            .with("LONG", "x".repeat(MAX_BYTES + 1));
        let context = RuntimeContext::new(environment, Arc::new(Silent), Cancel::new());
        let context = context.expect("a home");
        for (name, says) in [("EMPTY", "is not set"), ("NONE", "is not set"), ("LONG", "too long")]
        {
            let step = step(home.path(), name);
            grant_secrets(&[ungranted(&step)], &context).expect("written");
            let problem = problem(&[StepAction::Run("a".into()).alone(), step], &context);
            assert!(problem.contains("step 2") && problem.contains(says), "{problem}");
        }
    }
}
