//! Errors of the program itself: command lines that the parser lets through and that make no sense together, and what a
//! check ends with.

/// Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct UsageError {
    message: String,
    hint: String,
}

impl UsageError {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }

    pub(crate) fn hint(&self) -> &str {
        &self.hint
    }
}

/// Data that would stop a run. Exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct DataWouldStop {
    message: String,
    hint: Option<String>,
}

impl DataWouldStop {
    pub(crate) fn new(message: String, hint: Option<String>) -> Self {
        Self { message, hint }
    }

    pub(crate) fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}
