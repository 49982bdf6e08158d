//! Results of runs of `castra`.

use std::process::{Command, Output};

/// Result of a run of `castra`.
pub struct Ended {
    arguments: String,
    /// Exit code; none after a signal.
    pub code: Option<i32>,
    /// Output, in bytes.
    pub stdout: Vec<u8>,
    /// Messages, as text.
    pub stderr: String,
}

impl Ended {
    /// Runs a command of [`crate::Project::castra`]'s, changed to taste.
    pub fn of(mut command: Command) -> Self {
        let arguments: Vec<String> =
            command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
        let output = command.output().expect("castra runs");
        Self::new(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), output)
    }

    /// Makes one of what a process has left.
    pub fn new(arguments: &[&str], output: Output) -> Self {
        Self {
            arguments: arguments.join(" "),
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Insists on this exit code.
    #[track_caller]
    pub fn code(self, expected: i32) -> Self {
        assert_eq!(
            self.code,
            Some(expected),
            "castra {}\n{}\n{}",
            self.arguments,
            self.text(),
            self.stderr
        );
        self
    }

    /// Insists on success.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.code(0)
    }

    /// Returns stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Insists that stderr contains this text.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(
            self.stderr.contains(text),
            "castra {} does not say {text:?}:\n{}",
            self.arguments,
            self.stderr
        );
        self
    }
}
