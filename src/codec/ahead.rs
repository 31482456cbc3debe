//! Values before they are needed: asks the processor for memory that the encoder will come to.

/// How far before it is needed memory is asked for: some twelve blocks, which take longer than memory does.
const AHEAD: usize = 3072;

/// Asks for what stands [`AHEAD`] of `block`, of its size. Values come from memory, not from a cache, where a capture runs at full speed, and
/// processors by themselves do not look beyond the end of a page.
#[inline(always)]
#[allow(unsafe_code, reason = "an instruction without a safe form")]
pub(super) fn expect_soon(block: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..block.len()).step_by(64) {
        let at = block.as_ptr().wrapping_add(AHEAD + line).cast();
        // SAFETY: a hint reads nothing that the program sees, and an address that is not mapped is no fault.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (block, AHEAD);
}
