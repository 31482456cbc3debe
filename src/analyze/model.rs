//! Which models were loaded, by which build.

use serde::Serialize;

use crate::format::Line;
use crate::format::server::ModelLoad;

/// A model load: the log's event, unchanged.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Model(pub ModelLoad);

impl Model {
    /// The model of this event, if it is a load.
    #[must_use]
    pub fn of(line: &Line) -> Option<Self> {
        if let Line::ModelLoad(load) = line { Some(Self(load.clone())) } else { None }
    }

    /// Whether weights were read: `--fit` probes a model without them.
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.0.outcome == "load"
    }

    /// What to call it: its own name, its description, or the file's name.
    #[must_use]
    pub fn title(&self) -> Option<&str> {
        let file = self.0.path.as_deref().map(|p| p.rsplit('/').next().unwrap_or(p));
        self.0.name.as_deref().or(self.0.description.as_deref()).or(file)
    }
}
