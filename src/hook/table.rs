//! How a hook is made: the exported function, the look-up of the caller's own real one, and our code around it.

/// Jumps to the body of a hook with the address that the call returns to in the first floating-point
/// register. See [`Caller`].
///
/// [`Caller`]: crate::ggml::copies::Caller
#[cfg(target_arch = "x86_64")]
macro_rules! jump_with_caller {
    ($body:path) => {
        std::arch::naked_asm!("movq xmm0, qword ptr [rsp]", "jmp {body}", body = sym $body)
    };
}

/// See the x86-64 twin.
#[cfg(target_arch = "aarch64")]
macro_rules! jump_with_caller {
    ($body:path) => {
        std::arch::naked_asm!("fmov d0, x30", "b {body}", body = sym $body)
    };
}

/// Exports functions whose bodies are functions with one more argument, the caller.
macro_rules! exported {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? => $body:path;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Safety
            /// Called by the host with the arguments of the function of this name in its headers.
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            pub unsafe extern "C-unwind" fn $name($($arg: $ty),*) $(-> $ret)? {
                jump_with_caller!($body)
            }
        )*
    };
}

/// Defines interposed functions.
///
/// `before { .. }` runs ahead of the real call and gives a value (its type's default when we are off);
/// `after |value, ret| { .. }` gets it and the real result. Both run inside `boundary::guarded`. `always { .. }` runs
/// ahead of both, also while nothing is recorded: for what a recording that begins later has to know.
macro_rules! hooks {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?;
       $(always $always:block)? $(before $before:block)? $(after |$value:pat_param, $result:pat_param| $after:block)?)*) => {
        $(
            /// The body of the function of this name.
            #[allow(non_camel_case_types, reason = "named as the function is")]
            enum $name {}

            impl $name {
                unsafe extern "C-unwind" fn body($($arg: $ty,)* caller: crate::ggml::copies::Caller) $(-> $ret)? {
                    static REAL: crate::ggml::copies::Hooked = crate::ggml::copies::Hooked::new(
                        match std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                            Ok(name) => name,
                            Err(_) => c"",
                        },
                    );
                    let crate::ggml::copies::Target { address, copy, .. } = REAL.of(caller);
                    let _entered = crate::ggml::copies::enter(copy);
                    hooks!(@always copy, $($always)?);
                    #[allow(unused_variables, clippy::let_unit_value, reason = "hooks without a `before` or an `after`")]
                    let value = hooks!(@before copy, $($before)?);
                    let ret = if address.is_null() {
                        crate::observe::state::missing(stringify!($name));
                        // SAFETY: integers, floats, booleans and pointers only: all-zero is a value of each. Null
                        // cannot be called; the host linked against a definition that has gone since, and gets nothing
                        // rather than a crash.
                        unsafe { std::mem::zeroed() }
                    } else {
                        // SAFETY: the host calls this name with this signature, so the definition that the caller sees
                        // has it too.
                        let real = unsafe { std::mem::transmute::<crate::hook::Ptr, unsafe extern "C-unwind" fn($($ty),*) $(-> $ret)?>(address) };
                        // SAFETY: the host's own arguments.
                        unsafe { real($($arg),*) }
                    };
                    hooks!(@after copy, value, ret, $(|$value, $result| $after)?);
                    ret
                }
            }

            exported! {
                $(#[$doc])*
                fn $name($($arg: $ty),*) $(-> $ret)? => $name::body;
            }
        )*
    };
    (@always $copy:ident,) => {};
    (@always $copy:ident, $always:block) => {
        if $copy.is_observed() {
            crate::boundary::tracked((), || $always);
        }
    };
    (@before $copy:ident,) => { () };
    (@before $copy:ident, $before:block) => {
        if $copy.is_observed() {
            crate::boundary::guarded(Default::default(), || { crate::observe::recording::call_seen(); $before })
        } else {
            Default::default()
        }
    };
    (@after $copy:ident, $v:ident, $r:ident,) => {};
    (@after $copy:ident, $v:ident, $r:ident, |$value:pat_param, $result:pat_param| $after:block) => {
        if $copy.is_observed() {
            crate::boundary::guarded((), || { let ($value, $result) = ($v, &$r); $after })
        }
    };
}
