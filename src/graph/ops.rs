//! What kind of work an op is, by the word that `ggml_op_desc` gives for it.

/// Ops that only describe memory and are never executed.
#[must_use]
pub fn is_view_op(op: &str) -> bool {
    matches!(op, "NONE" | "RESHAPE" | "VIEW" | "PERMUTE" | "TRANSPOSE")
}

/// Matrix multiplications.
#[must_use]
pub fn is_matmul(op: &str) -> bool {
    matches!(op, "MUL_MAT" | "MUL_MAT_ID" | "OUT_PROD")
}

/// Ops that move, select or place values (converting their type at most) and compute none; the views among them.
#[must_use]
pub fn moves_data_only(op: &str) -> bool {
    is_view_op(op)
        || matches!(
            op,
            "CPY"
                | "CONT"
                | "DUP"
                | "GET_ROWS"
                | "SET_ROWS"
                | "SET"
                | "CONCAT"
                | "REPEAT"
                | "PAD"
                | "PAD_REFLECT_1D"
                | "ROLL"
                | "IM2COL"
                | "IM2COL_3D"
                | "WIN_PART"
                | "WIN_UNPART"
                | "GET_REL_POS"
                | "DIAG"
                | "DIAG_MASK_INF"
                | "DIAG_MASK_ZERO"
                | "TRI"
        )
}

/// The activation function of an op, gated (`SWIGLU`) or not (`SILU`), variants under their family's name.
#[must_use]
pub fn activation(op: &str) -> Option<&'static str> {
    Some(match op {
        "SWIGLU" | "SWIGLU_OAI" | "SWIGLU_CLAMP" | "SILU" => "silu",
        "GEGLU" | "GEGLU_ERF" | "GEGLU_QUICK" | "GELU" | "GELU_ERF" | "GELU_QUICK" => "gelu",
        "REGLU" | "RELU" => "relu",
        "LEAKY_RELU" => "leaky_relu",
        "SIGMOID" => "sigmoid",
        "TANH" => "tanh",
        "ELU" => "elu",
        "XIELU" => "xielu",
        "SOFTPLUS" => "softplus",
        "HARDSWISH" => "hardswish",
        "HARDSIGMOID" => "hardsigmoid",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ops_are_sorted_by_their_work() {
        assert!(is_view_op("NONE") && is_view_op("PERMUTE") && !is_view_op("CONT"));
        assert!(moves_data_only("VIEW") && moves_data_only("GET_ROWS") && !moves_data_only("SCALE"));
        assert!(is_matmul("MUL_MAT_ID") && !is_matmul("MUL"));
        assert_eq!(activation("SWIGLU"), Some("silu"));
        assert_eq!(activation("GEGLU_QUICK"), Some("gelu"));
        assert_eq!(activation("REGLU"), Some("relu"));
        assert_eq!(activation("MUL"), None);
    }
}
