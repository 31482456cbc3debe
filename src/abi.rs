//! The C API: every exported function that is not a hook. Bodies are short; what they do is in the parts.
