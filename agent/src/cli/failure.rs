use std::{fmt::Write as _, process::ExitCode};

use crate::api::{ApiError, client::ClientError};

/// Why a command failed, as a person reads it: a sentence, what lay beneath, a way out, and an exit code.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    sentence: String,
    causes: Vec<String>,
    help: Option<String>,
    exit_code: u8,
}

impl Failure {
    /// Something that failed here, not at the agent.
    pub(super) fn new(sentence: impl Into<String>) -> Self {
        Self {
            sentence: sentence.into(),
            causes: Vec::new(),
            help: None,
            exit_code: 1,
        }
    }

    /// A command line that can never work.
    pub(super) fn usage(sentence: impl Into<String>) -> Self {
        Self {
            exit_code: 2,
            ..Self::new(sentence)
        }
    }

    /// The sentence alone.
    pub(super) fn sentence(&self) -> &str {
        &self.sentence
    }

    /// Adds the way out.
    pub(super) fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Prints it on standard error and gives the exit code to end with.
    pub(super) fn report(&self) -> ExitCode {
        eprint!("{}", self.render());
        ExitCode::from(self.exit_code)
    }

    pub(super) fn render(&self) -> String {
        let mut text = format!("error: {}\n", self.sentence);
        for cause in &self.causes {
            // A String takes every write.
            let _ = writeln!(text, "  because: {cause}");
        }
        if let Some(help) = &self.help {
            let _ = writeln!(text, " help: {help}");
        }
        text
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self {
            sentence: error.to_string(),
            causes: Vec::new(),
            help: error.help(),
            exit_code: error.exit_code(),
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        ClientError::from(error).into()
    }
}

impl From<anyhow::Error> for Failure {
    /// An [`ApiError`] or [`ClientError`] in the chain brings its own help and exit code.
    fn from(error: anyhow::Error) -> Self {
        let error = match error.downcast::<ClientError>() {
            Ok(error) => return error.into(),
            Err(error) => error,
        };
        let api = error.downcast_ref::<ApiError>();
        Self {
            sentence: error.to_string(),
            causes: error.chain().skip(1).map(ToString::to_string).collect(),
            help: api.and_then(|error| error.help.clone()),
            exit_code: api.map_or(1, |error| error.kind.exit_code()),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_failure_is_a_sentence_its_causes_and_a_way_out() {
        let error =
            anyhow::Error::from(ApiError::conflict("port 7946 is in use").with_help("choose another"))
                .context("the agent cannot start");
        let failure = Failure::from(error);
        assert_eq!(
            failure.render(),
            "error: the agent cannot start\n  because: port 7946 is in use\n help: choose another\n"
        );
        assert_eq!(failure.exit_code, 4);
    }

    #[test]
    fn an_unknown_error_fails_with_one() {
        let missing = std::fs::read("/nonexistent/weft").context("the file cannot be read");
        let failure = Failure::from(missing.unwrap_err());
        assert_eq!(failure.exit_code, 1);
        assert_eq!(
            failure.render(),
            "error: the file cannot be read\n  because: No such file or directory (os error 2)\n"
        );
    }
}
