//! The pieces of many jobs, tensor by tensor: what stands together in a packet.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::cut::Bundle;
use super::job::Table;

/// The same piece of jobs that follow each other and have one table: number of the bundle, of the jobs there,
/// of the piece.
#[derive(Clone, Debug)]
pub(super) struct Stretch {
    pub(super) bundle: u32,
    pub(super) jobs: Range<u32>,
    pub(super) piece: u32,
}

impl Stretch {
    /// The jobs' table.
    pub(super) fn table<'a>(&self, bundles: &'a [Bundle]) -> Option<&'a Table> {
        Some(&bundles.get(self.bundle as usize)?.get(self.jobs.start as usize)?.table)
    }
}

/// The pieces of each tensor in the order in which they came, and tensors in the order in which they first came.
pub(super) fn by_tensor(bundles: &[Bundle]) -> Vec<Vec<Stretch>> {
    let mut groups: Vec<Vec<Stretch>> = Vec::new();
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    for (bundle, jobs) in (0..).zip(bundles) {
        let mut end = 0;
        for alike in jobs.chunk_by(|a, b| Arc::ptr_eq(&a.table, &b.table)) {
            let first = end;
            end += alike.len() as u32;
            let Some(table) = alike.first().map(|job| &job.table) else { continue };
            for (piece, p) in (0..).zip(table.pieces()) {
                let Some(spec) = table.spec(p) else { continue };
                let group = *by_name.entry(&spec.name).or_insert_with(|| {
                    groups.push(Vec::new());
                    groups.len() - 1
                });
                if let Some(group) = groups.get_mut(group) {
                    group.push(Stretch { bundle, jobs: first..end, piece });
                }
            }
        }
    }
    groups
}
