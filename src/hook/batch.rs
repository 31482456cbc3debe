//! The builders of `llama_batch_ext`, which is opaque: what is in a batch can only be seen while it is filled.

use super::Ptr;
use crate::observe::{self, contexts::Row};

fn added(batch: Ptr, seq: i32, token: i32, index: i32) {
    if index < 0 {
        return;
    }
    let mut host = observe::host();
    let rows = host.contexts.builder(batch);
    // The batch was filled before recording began: rows that were not seen have no sequence.
    rows.resize(index as usize, Row { seq: -1, more: Vec::new(), pos: None, token: -1, output: false });
    rows.push(Row { seq, more: Vec::new(), pos: None, token, output: false });
}

fn change(batch: Ptr, index: i32, f: impl FnOnce(&mut Row)) {
    let mut host = observe::host();
    if let Some(row) = usize::try_from(index).ok().and_then(|i| host.contexts.builder(batch).get_mut(i)) {
        f(row);
    }
}

hooks! {
    /// The batch is emptied, to be filled anew.
    fn llama_batch_ext_clear(batch: Ptr);
    before { observe::host().contexts.builder(batch).clear() }

    /// The batch is freed.
    fn llama_batch_ext_free(batch: Ptr);
    before { observe::host().contexts.drop_builder(batch) }

    /// A row without token or embedding yet. After the real call, which gives its index.
    fn llama_batch_ext_add(batch: Ptr, seq: i32) -> i32;
    before {}
    after |(), index| { added(batch, seq, -1, *index) }

    /// A token.
    fn llama_batch_ext_add_token(batch: Ptr, seq: i32, token: i32) -> i32;
    before {}
    after |(), index| { added(batch, seq, token, *index) }

    /// A further sequence of a row.
    fn llama_batch_ext_add_seq(batch: Ptr, index: i32, seq: i32) -> bool;
    before {}
    after |(), ok| { if *ok { change(batch, index, |r| r.more.push(seq)) } }

    /// A position (the first of several for M-RoPE).
    fn llama_batch_ext_set_pos(batch: Ptr, index: i32, pos: *const i32) -> bool;
    before {}
    after |(), ok| {
        if *ok && !pos.is_null() {
            // SAFETY: the host passes at least one position.
            let pos = unsafe { *pos };
            change(batch, index, |r| r.pos = Some(pos));
        }
    }

    /// Logits are wanted for a row.
    fn llama_batch_ext_set_output_logits(batch: Ptr, index: i32, value: bool) -> bool;
    before {}
    after |(), ok| { if *ok { change(batch, index, |r| r.output = value) } }

    /// Embeddings are wanted for a row.
    fn llama_batch_ext_set_output_embd(batch: Ptr, index: i32, value: bool) -> bool;
    before {}
    after |(), ok| { if *ok { change(batch, index, |r| r.output = value) } }
}

/// `llama_embd`: passed by value, 24 bytes, so on the stack.
type Embd = super::ByValue<3>;

hooks! {
    /// An embedding.
    fn llama_batch_ext_add_embd(batch: Ptr, seq: i32, embd: Embd) -> i32;
    before {}
    after |(), index| { added(batch, seq, -1, *index) }
}
