//! How a hook is made: the exported function, the look-up of the real one, and our code around it.

/// Defines interposed functions.
///
/// `before { .. }` runs ahead of the real call and gives a value (its type's default when we are off); `after |value, ret| { .. }` gets
/// it and the real result. Both run inside `boundary::observe`.
macro_rules! hooks {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?;
       $(before $before:block)? $(after |$value:pat_param, $result:pat_param| $after:block)?)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Safety
            /// Called by the host with the arguments of the function of this name in its headers.
            #[unsafe(no_mangle)]
            pub unsafe extern "C-unwind" fn $name($($arg: $ty),*) $(-> $ret)? {
                static REAL: crate::ggml::symbol::Symbol = crate::ggml::symbol::Symbol::new(
                    match std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => c"",
                    },
                );
                #[allow(unused_variables, clippy::let_unit_value, reason = "hooks without a `before` or an `after`")]
                let value = hooks!(@before $($before)?);
                let address = REAL.address();
                let ret = if address.is_null() {
                    crate::observe::state::missing(stringify!($name));
                    // SAFETY: integers, floats, booleans and pointers only: all-zero is a value of each. Null cannot be called; the host
                    // linked against a definition that has gone since, and gets nothing rather than a crash.
                    unsafe { std::mem::zeroed() }
                } else {
                    // SAFETY: the host calls this name with this signature, so the next definition of it has it too.
                    let real = unsafe { std::mem::transmute::<crate::hook::Ptr, unsafe extern "C-unwind" fn($($ty),*) $(-> $ret)?>(address) };
                    // SAFETY: the host's own arguments.
                    unsafe { real($($arg),*) }
                };
                hooks!(@after value, ret, $(|$value, $result| $after)?);
                ret
            }
        )*
    };
    (@before) => { () };
    (@before $before:block) => { crate::boundary::observe(Default::default(), || { crate::observe::state::call_seen(); $before }) };
    (@after $v:ident, $r:ident,) => {};
    (@after $v:ident, $r:ident, |$value:pat_param, $result:pat_param| $after:block) => {
        crate::boundary::observe((), || { let ($value, $result) = ($v, &$r); $after })
    };
}
