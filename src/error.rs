//! One error type: what we were doing, where, what was expected, what was found, and what helps.

use std::fmt;

/// An error of this library, told so that a stranger can act on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What we were doing, as a gerund: `opening the log`.
    pub doing: String,
    /// The file, variable or symbol it concerns.
    pub subject: String,
    /// What went wrong: expected and found.
    pub problem: String,
    /// What the user can do; empty if nothing.
    pub remedy: String,
}

/// A result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with its remedy.
    pub fn new(
        doing: impl Into<String>,
        subject: impl Into<String>,
        problem: impl fmt::Display,
        remedy: impl Into<String>,
    ) -> Self {
        Self { doing: doing.into(), subject: subject.into(), problem: problem.to_string(), remedy: remedy.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} failed: {}", self.doing, self.subject, self.problem)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn message_names_what_where_why_and_remedy() {
        let e = Error::new("opening the log", "/x/y.jsonl", "No such file or directory", "create the directory /x");
        assert_eq!(
            e.to_string(),
            "opening the log /x/y.jsonl failed: No such file or directory; create the directory /x"
        );
        assert_eq!(Error::new("a", "b", "c", "").to_string(), "a b failed: c");
    }
}
