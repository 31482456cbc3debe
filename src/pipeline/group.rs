//! The pieces of many jobs, tensor by tensor: what stands together in a packet.

use std::collections::HashMap;
use std::sync::Arc;

use super::cut::Bundle;
use super::{Amount, Job, Piece};

/// Where a piece is: numbers of its bundle, of its job there, and of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) bundle: u32,
    pub(super) job: u32,
    pub(super) piece: u32,
}

impl Place {
    pub(super) fn of(self, bundles: &[Bundle]) -> Option<(&Job, &Piece)> {
        let job = bundles.get(self.bundle as usize)?.get(self.job as usize)?;
        Some((job, job.pieces.get(self.piece as usize)?))
    }
}

/// The pieces of each tensor in the order in which they came, and tensors in the order in which they first came. A piece that says what
/// cannot be goes to `lost`.
pub(super) fn by_tensor(bundles: &[Bundle], mut lost: impl FnMut(Amount)) -> Vec<Vec<Place>> {
    let mut groups: Vec<Vec<Place>> = Vec::new();
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    // The table of the last job, and the group of each of its tensors, `usize::MAX` if it has none yet: steps of one graph have one table.
    let mut table = None;
    let mut by_spec: Vec<usize> = Vec::new();
    for (bundle, jobs) in (0..).zip(bundles) {
        for (number, job) in (0..).zip(jobs.iter()) {
            if !table.is_some_and(|t| Arc::ptr_eq(t, &job.specs)) {
                by_spec.clear();
                by_spec.resize(job.specs.len(), usize::MAX);
                table = Some(&job.specs);
            }
            for (i, piece) in (0..).zip(&job.pieces) {
                let known = by_spec.get_mut(piece.spec as usize).filter(|_| is_inside(piece, job));
                let (Some(known), Some(spec)) = (known, job.spec(piece)) else {
                    lost(piece.amount());
                    continue;
                };
                if *known == usize::MAX {
                    *known = *by_name.entry(&spec.name).or_insert_with(|| {
                        groups.push(Vec::with_capacity(jobs.len()));
                        groups.len() - 1
                    });
                }
                if let Some(group) = groups.get_mut(*known) {
                    group.push(Place { bundle, job: number, piece: i });
                }
            }
        }
    }
    groups
}

/// Whether the piece lies within its buffer.
fn is_inside(piece: &Piece, job: &Job) -> bool {
    let room = job.data.get(usize::from(piece.buffer)).map_or(0, |buffer| buffer.len());
    piece.offset.checked_add(piece.stored()).is_some_and(|end| end <= room)
}
