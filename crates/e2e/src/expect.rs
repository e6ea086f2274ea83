//! What a test expects of a command, in words that can be chained; each failure shows the whole command and its output.

use crate::command::Outcome;

impl Outcome {
    /// It ended with 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exit(0)
    }

    /// It ended with this code.
    #[track_caller]
    pub fn exit(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "wrong exit code: {self}");
        self
    }

    /// It failed, whatever the code.
    #[track_caller]
    pub fn failed(self) -> Self {
        assert_ne!(self.code(), 0, "should have failed: {self}");
        self
    }

    /// Stdout is exactly this.
    #[track_caller]
    pub fn stdout(self, expected: &str) -> Self {
        assert!(
            self.stdout == expected.as_bytes(),
            "stdout should be {expected:?}: {self}"
        );
        self
    }

    /// Stderr is exactly this.
    #[track_caller]
    pub fn stderr(self, expected: &str) -> Self {
        assert!(
            self.stderr == expected.as_bytes(),
            "stderr should be {expected:?}: {self}"
        );
        self
    }

    /// Stdout holds this.
    #[track_caller]
    pub fn says(self, part: &str) -> Self {
        assert!(self.text().contains(part), "stdout should hold {part:?}: {self}");
        self
    }

    /// Stdout holds nothing of this.
    #[track_caller]
    pub fn says_not(self, part: &str) -> Self {
        assert!(!self.text().contains(part), "stdout should not hold {part:?}: {self}");
        self
    }

    /// Stderr holds this, in upper or lower case.
    #[track_caller]
    pub fn complains(self, part: &str) -> Self {
        let held = self.errors().to_lowercase().contains(&part.to_lowercase());
        assert!(held, "stderr should hold {part:?}: {self}");
        self
    }

    /// Stdout parsed as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("stdout is no JSON ({error}): {self}"))
    }
}
