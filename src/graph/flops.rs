//! How many floating-point operations each op does: one table, one formula per line.
//!
//! What counts: every addition, subtraction, multiplication and division of the result's definition is one FLOP, so is
//! every exp, log, sin, cos, tanh, erf and square root; a multiply-add is two. Comparisons, sign bits, rounding, index
//! arithmetic and type conversion are none. Masked and padded positions count: the kernels are free to skip them, so
//! attention over a causal mask is an upper bound. Where a formula needs one of the op's parameters, which are not part
//! of `Tensor`, the line says what is assumed. Formulas follow ggml/src/ggml-cpu/ops.cpp, without its SIMD shortcuts.

use super::Node;

/// How an op's FLOPs follow from its shapes.
pub enum Rule {
    /// This number for each element of the result; 0 for ops that only move, compare or describe.
    Result(u64),
    /// This number for each element of the first source.
    Source(u64),
    /// A formula of its own.
    Formula(fn(&Node<'_>) -> u64),
    /// An op whose work ggml does not describe either: a function of the host.
    Opaque,
}

use Rule::{Formula, Opaque, Result, Source};

/// The rule for an op name of `ggml_op_desc`; none for one that this table does not have.
pub fn rule(op: &str) -> Option<Rule> {
    Some(match op {
        // Multiply K pairs and add them up, for each element of the result.
        "MUL_MAT" | "MUL_MAT_ID" => Formula(|n| product(&[2, n.source(0).dim(0), n.out.elements()])),
        // The same over the second dimension of the first source.
        "OUT_PROD" => Formula(|n| product(&[2, n.source(0).dim(1), n.out.elements()])),
        "FLASH_ATTN_EXT" => Formula(flash_attention),
        // Scores again, then the gradients of V, P, Q and K: five products of the forward pass' size.
        "FLASH_ATTN_BACK" => Formula(|n| product(&[10, n.source(0).elements(), n.source(1).dim(1)])),

        // Describe memory.
        "NONE" | "RESHAPE" | "VIEW" | "PERMUTE" | "TRANSPOSE" => Result(0),
        // Move, place or convert.
        "CPY" | "CONT" | "DUP" | "GET_ROWS" | "SET_ROWS" | "SET" | "CONCAT" | "REPEAT" | "PAD" | "PAD_REFLECT_1D"
        | "ROLL" | "FILL" | "IM2COL" | "IM2COL_3D" | "WIN_PART" | "WIN_UNPART" | "GET_REL_POS" | "DIAG"
        | "DIAG_MASK_INF" | "DIAG_MASK_ZERO" | "TRI" => Result(0),
        // Nearest neighbour; interpolation does arithmetic, but the mode is a parameter: a lower bound.
        "UPSCALE" => Result(0),
        // Compare.
        "ARGMAX" | "ARGSORT" | "TOP_K" | "COUNT_EQUAL" | "CLAMP" => Result(0),
        // Compare, set the sign or round.
        "ABS" | "SGN" | "STEP" | "RELU" | "FLOOR" | "CEIL" | "ROUND" | "TRUNC" => Result(0),

        "ADD" | "ADD1" | "ADD_ID" | "SUB" | "MUL" | "DIV" | "SQR" | "SQRT" | "LOG" | "SIN" | "COS" => Result(1),
        // s*x; the bias that it may add is a parameter and is not counted.
        "SCALE" => Result(1),
        // Adds the second source to a part of the first.
        "ACC" => Formula(|n| n.source(1).elements()),
        // start + i*step.
        "ARANGE" => Result(2),
        // Two added biases.
        "ADD_REL_POS" => Result(2),
        // sin or cos of t*frequency.
        "TIMESTEP_EMBEDDING" => Result(2),

        // Each element is added once.
        "SUM" | "SUM_ROWS" | "CUMSUM" | "REPEAT_BACK" | "GET_ROWS_BACK" | "IM2COL_BACK" | "COL2IM_1D" => Source(1),
        // The same, then one division for each mean.
        "MEAN" => Formula(|n| n.source(0).elements().saturating_add(n.out.elements())),
        // Each element in one window, as with a stride of the window's size; the window is a parameter.
        "POOL_1D" | "POOL_2D" => Source(1),
        "POOL_2D_BACK" => Result(1),

        // Square and add, then scale; what is done once a row (mean, eps, root) is not counted.
        "RMS_NORM" | "L2_NORM" => Result(3),
        // Add for the mean, subtract it, square and add, scale.
        "NORM" | "GROUP_NORM" => Result(5),
        // Two dot products, then scale, add and scale.
        "RMS_NORM_BACK" => Result(7),
        "SOFT_MAX" => Formula(|n| product(&[softmax_per_score(n.source(1).elements() > 0) + 1, n.out.elements()])),
        // One dot product, subtract it, multiply.
        "SOFT_MAX_BACK" => Result(4),
        // Four multiplications and two additions a pair, as if all dimensions turned; the angles are not counted.
        "ROPE" | "ROPE_BACK" => Result(3),

        "NEG" | "EXP" | "EXPM1" | "TANH" => Result(1),
        // Its slope for negative values.
        "LEAKY_RELU" => Result(1),
        // exp(x) - 1.
        "ELU" => Result(2),
        // 1/(1 + exp(-x)).
        "SIGMOID" => Result(4),
        // x/(1 + exp(-x)).
        "SILU" => Result(4),
        // log(1 + exp(x)).
        "SOFTPLUS" => Result(3),
        // (x + 3)/6, clamped; times x.
        "HARDSIGMOID" => Result(2),
        "HARDSWISH" => Result(3),
        // 0.5*x*(1 + tanh(c*x*(1 + a*x*x))).
        "GELU" => Result(9),
        // 0.5*x*(1 + erf(x/sqrt(2))).
        "GELU_ERF" => Result(5),
        // x*(1/(1 + exp(c*x))).
        "GELU_QUICK" => Result(5),
        // The longer branch: (expm1(x) - x)*a + b*x.
        "XIELU" => Result(5),
        // The name without its function, as `ggml_op_name` gives it: a lower bound.
        "UNARY" | "GLU" => Result(1),
        // dy*s*(1 + x*(1 - s)) with s = 1/(1 + exp(-x)).
        "SILU_BACK" => Result(9),

        // The activation of one half, times the other.
        "REGLU" => Result(1),
        "GEGLU" => Result(10),
        "GEGLU_ERF" | "GEGLU_QUICK" => Result(6),
        "SWIGLU" | "SWIGLU_CLAMP" => Result(5),
        // x/(1 + exp(a*-x)) * (y + 1).
        "SWIGLU_OAI" => Result(7),

        "SSM_CONV" => Formula(|n| product(&[2, n.source(1).dim(0), n.out.elements()])),
        "SSM_SCAN" => Formula(ssm_scan),
        // For each element of a head's S x S state and each token: k*v; times u, plus state, times r, added;
        // state*w, plus k*v.
        "RWKV_WKV6" => Formula(|n| product(&[7, n.source(0).dim(0), n.source(0).elements()])),
        // a*state added; k*v; state*w plus k*v plus sa*b; times r, added.
        "RWKV_WKV7" => Formula(|n| product(&[9, n.source(0).dim(0), n.source(0).elements()])),
        // k*v; state*g plus k*v; times q, added. And q*scale.
        "GATED_LINEAR_ATTN" => {
            Formula(|n| product(&[product(&[5, n.source(0).dim(0)]).saturating_add(1), n.source(0).elements()]))
        }
        "GATED_DELTA_NET" => Formula(gated_delta_net),
        // Row i of n: i multiply-adds, one subtraction, one division, for each right-hand side: n*n + n.
        "SOLVE_TRI" => Formula(|n| product(&[n.source(0).dim(0).saturating_add(1), n.out.elements()])),
        // For each score and head: a dot product, times the head's weight, added; plus the mask.
        "LIGHTNING_INDEXER" => Formula(|n| {
            let per_head = product(&[2, n.source(0).dim(0)]).saturating_add(2);
            product(&[per_head, n.source(0).dim(1), n.out.elements()]).saturating_add(n.out.elements())
        }),
        // Scale and shift, softmax, eps, columns normalised once; further rounds (2 each) are a parameter:
        // a lower bound.
        "DSV4_HC_COMB" => Result(9),
        // A weighted sum over the streams, scaled; the sigmoid of gated weights is counted when they are per element.
        "DSV4_HC_PRE" => Formula(|n| {
            let gated = n.source(1).dim(0) == n.source(0).dim(0) && n.source(1).rows() == n.source(0).rows();
            let per_element = product(&[n.source(0).dim(1), if gated { 6 } else { 2 }]).saturating_add(1);
            product(&[per_element, n.out.elements()])
        }),
        // x*post plus a mix of all streams, or plus the own one.
        "DSV4_HC_POST" => Formula(|n| {
            let mix = if n.source(3).elements() > 0 { product(&[2, n.source(1).dim(1)]) } else { 1 };
            product(&[mix.saturating_add(1), n.out.elements()])
        }),

        // A multiply-add for each element of the kernel of one output channel.
        "CONV_2D" => Formula(|n| {
            let kernel = n.source(0);
            product(&[2, kernel.dim(0), kernel.dim(1), kernel.dim(2), n.out.elements()])
        }),
        "CONV_2D_DW" => Formula(|n| product(&[2, n.source(0).dim(0), n.source(0).dim(1), n.out.elements()])),
        "CONV_3D" => Formula(conv_3d),
        // Each input element of each channel meets the whole kernel of that channel.
        "CONV_TRANSPOSE_1D" => {
            Formula(|n| product(&[2, n.source(0).dim(0), n.source(0).dim(1), n.source(1).elements()]))
        }
        "CONV_TRANSPOSE_2D" => Formula(|n| {
            let kernel = n.source(0);
            product(&[2, kernel.dim(0), kernel.dim(1), kernel.dim(2), n.source(1).elements()])
        }),

        // Log-softmax (subtract, exp, add, subtract), times the label, added.
        "CROSS_ENTROPY_LOSS" => Source(6),
        // Softmax (subtract, exp, add, scale), minus the label, scaled.
        "CROSS_ENTROPY_LOSS_BACK" => Result(6),
        // Both moments (3 + 4), both corrections with root and eps (4), decay and step (4).
        "OPT_STEP_ADAMW" => Result(15),
        // x*(1 - decay) - rate*gradient.
        "OPT_STEP_SGD" => Result(3),

        "MAP_CUSTOM1" | "MAP_CUSTOM2" | "MAP_CUSTOM3" | "CUSTOM" => Opaque,
        _ => return None,
    })
}

/// A product that stops at the largest number: shapes come from another process' memory layout and may be nonsense.
pub fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |product: u64, &factor| product.saturating_mul(factor))
}

/// Scale, mask, subtract the maximum, exp, add up; the division by the sum is apart.
fn softmax_per_score(mask: bool) -> u64 {
    4 + u64::from(mask)
}

/// q [Dk, tokens, heads, batch], k [Dk, n_kv, ..], v [Dv, n_kv, ..], mask. Counted: q*k (2*Dk a score), the softmax of
/// the scores (4, and 1 with a mask), scores*v (2*Dv a score), one division for each element of the result. All n_kv
/// positions of the view count, those behind the mask and the padding of n_kv too. Not counted: ALiBi, soft cap, sinks.
fn flash_attention(n: &Node<'_>) -> u64 {
    let (q, k, v) = (n.source(0), n.source(1), n.source(2));
    let scores = product(&[q.rows(), k.dim(1)]);
    let per_score = product(&[2, q.dim(0).saturating_add(v.dim(0))]);
    let softmax = softmax_per_score(n.source(3).elements() > 0);
    product(&[scores, per_score.saturating_add(softmax)]).saturating_add(n.out.elements())
}

/// s [d_state, dim, heads, slots], x [dim, heads, tokens, seqs], dt [heads, tokens, seqs], A [1 or d_state, heads].
/// For each state element: state*dA + B*x (3), times C, added (2). For each x: x*dt (1). For each dt: softplus (3).
/// dA = exp(dt*A) is 2 for each head in Mamba-2, for each state element in Mamba-1.
fn ssm_scan(n: &Node<'_>) -> u64 {
    let (x, dt) = (n.source(1).elements(), n.source(2).elements());
    let states = product(&[x, n.source(0).dim(0)]);
    let decays = if n.source(3).dim(0) == 1 { dt } else { states };
    product(&[5, states]).saturating_add(x).saturating_add(product(&[3, dt])).saturating_add(product(&[2, decays]))
}

/// q, k, v [S, heads, tokens, seqs], g [1 or S, ..]. For each head and token: decay S*S and its exp, state*k (2*S*S),
/// subtract from v and scale by beta (2*S), add the outer product (2*S*S), state*q (2*S*S), scale (S).
fn gated_delta_net(n: &Node<'_>) -> u64 {
    let (v, g) = (n.source(2), n.source(3));
    let per_element = product(&[7, v.dim(0)]).saturating_add(3);
    product(&[per_element, v.elements()]).saturating_add(g.elements())
}

/// Kernel [w, h, d, in*out], image [.., in*n], result [.., out*n]: a multiply-add for each kernel element of one output
/// channel. The number of input channels is a parameter, but in*out * in*n / (out*n) is its square.
fn conv_3d(n: &Node<'_>) -> u64 {
    let kernel = n.source(0);
    let square = product(&[kernel.dim(3), n.source(1).dim(3)]) / n.out.dim(3).max(1);
    product(&[2, kernel.dim(0), kernel.dim(1), kernel.dim(2), square.isqrt(), n.out.elements()])
}
