//! The names that llama.cpp gives to graph nodes and weights, and the component each belongs to.
//!
//! One pattern is a whole name or, with `*` at the end, a prefix. The longest pattern that fits wins, so the order here
//! carries no meaning. `class` adds what a name alone cannot say. Checked against every name of the pinned llama.cpp by
//! `class`'s tests (tests/data/tensor-names.tsv).

use super::component::Component::{
    self, Attention, AttentionIndex, Embedding, Input, KvCache, Mlp, Moe, Norm, Output, Residual, Sampling, Ssm,
};

/// Names of graph nodes, without layer and `mtp_`.
pub static NODES: Table<300> = Table::new(&[
    (
        Attention,
        "Kcur* Qcur* Vcur* QKVcur* attn attn_* fattn_mla gate_sigmoid mtp_gate k k_* kq* kqv* kv kv_* mla_* q q_* qk qkv qr \
         sa_out v v_* wo wqkv* model.layers.{}.self_attn.*",
    ),
    (AttentionIndex, "attn_csa* attn_hca* csa_* hca_* indexer* kq_mask_* lid_* msa_* top_k"),
    (
        Embedding,
        "concat* cross_inp deepstack_* eh_proj embd* embedding_output enc_input_norm enorm fc_out h_input h_state hnorm \
         inpL inp_* model.embed_tokens model.input_embed noise_norm per_layer_* ple_* pos_bias pos_embd pre_proj \
         stack_norm tok_embd",
    ),
    (
        Input,
        "adapter_ids attn_inp_* cls cross_embd dsv4_* inp_attn_scale inp_mixed_slots inp_mixed_tokens inp_out_ids inp_pos \
         inp_scale_rows inp_tokens leaf_* mean out_ids pos_bucket* rs_s_copy self_kq_mask*",
    ),
    (KvCache, "cache_* dsv4_csa_state* dsv4_hca_state* dsv4_lid_state*"),
    (Mlp, "ffn_* post_ffn model.layers.{}.ffn_out"),
    (
        Moe,
        "ffn_adj_moe_out ffn_dense_out ffn_final_moe_out ffn_gate_par ffn_mlp ffn_moe* ffn_norm_exps ffn_shared* ffn_shexp* \
         post_moe router_out shared_expert*",
    ),
    (
        Norm,
        "Kcur_norm* Qcur_norm* Vcur_norm* attn_k_norm attn_norm* attn_out_norm attn_post_norm attn_q_norm attn_sub_norm \
         eagle3_prenorm enc_norm_out ffn_norm* ffn_post_norm ffn_pre_norm ffn_sub_norm g_norm hc_norm kv_cmpr_norm kv_norm \
         layer_norm* loop_norm model.layers.{}.ffn_norm model.layers.{}.operator_norm \
         model.layers.{}.self_attn.k_layernorm model.layers.{}.self_attn.q_layernorm norm norm_w post_attn_norm \
         post_mlp_norm q_a_norm q_norm qkv_norm qr_norm",
    ),
    (
        Output,
        "altup_unembd* decision_* final_norm_out final_output img_logits lmhead_scaling res_probs result_* \
         shared_head_norm unembd_merged",
    ),
    (
        Residual,
        "active_prediction all_coefs altup* attn_ffw_laurel* attn_laurel attn_residual corrected ffn_inp ffn_residual \
         first_prediction* h_nextn hc_* hidden_scaled* innovation l_last l_out laurel* layer_inp layer_out modalities \
         out_scaled pe_in predictions residual_scaled*",
    ),
    (
        Sampling,
        "dist_* greedy_* logit_* logits_* max_idx max_logit min_p_* penalties_* temp_* top_k_* top_p_* uniform_*",
    ),
    (
        Ssm,
        "a a_softplus alpha attn_conv_* attn_inter attn_pre_solve b b_in beta* block_decay* cache_ple_r cache_r cache_s \
         conv_* decay* diag_decay* dnet_* ffn_conv_* g g1* g2* g_* gate gate_reshaped k_after_decay* k_b k_beta_g_exp \
         k_conv* k_cumdecay k_decay* k_in k_states k_trans kda_* key_* kv_cur kv_new kv_old* linear_attn_* mamba* \
         model.layers.{}.conv.* nemotron_h_block_out new_state output_state prefix_sum_attn q_conv* q_decay* q_in q_s \
         q_s_trans q_states q_trans qk_s qkv_diag qkv_mixed* qkv_none_diag qkv_permuted query_flat slope* ssm_* state_* \
         v_attn v_b v_conv* v_in v_prime v_states v_t_new v_trans value_flat wkv* z",
    ),
]);

/// Names of weights, without block and `.weight`. Longest pattern first, as above.
pub static WEIGHTS: Table<160> = Table::new(&[
    (Attention, "attn_* cross_attn_* rope_* vis_attn_*"),
    (AttentionIndex, "attn_compressor_* indexer*"),
    (
        Embedding,
        "a.* fc hrm.* inp_gate masked_embd* mm.* nextn.* per_layer_* ple_* position_embd proj token_embd* token_types v.*",
    ),
    (Mlp, "channel_mix_* ffn.* ffn_* vis_down vis_gate vis_up"),
    (
        Moe,
        "exp_probs_b* ffn_down.* ffn_down_chexps ffn_down_exps* ffn_down_shexp ffn_gate.* ffn_gate_chexps ffn_gate_exps* \
         ffn_gate_inp* ffn_gate_shexp ffn_gate_tid2eid ffn_gate_up_exps* ffn_latent_* ffn_norm_exps ffn_routed_* ffn_up.* \
         ffn_up_chexps ffn_up_exps* ffn_up_shexp",
    ),
    (
        Norm,
        "attn_k_norm attn_kv_a_norm attn_norm* attn_output_norm attn_post_norm attn_q_a_norm attn_q_norm attn_sub_norm \
         cross_attn_norm ffn_norm ffn_norm_1 ffn_norm_2 ffn_post_norm ffn_sub_norm hc_attn_norm hc_ffn_norm \
         layer_output_norm ln1 ln2 post_attention_norm post_ffw_norm* post_norm pre_ffw_norm*",
    ),
    (
        Output,
        "altup_unembd* cls* conf_proj d2t dec.output_norm dense_2 dense_3 enc.output_norm markov_* nextn.shared_head* \
         output output_norm selector_*",
    ),
    (Residual, "altup_* attn_res_score ffn_res_score hc_* laurel_* layer_output_scale output_hc_* output_res_score"),
    (Ssm, "attn_conv_* ffn_conv_* shortconv.* ssm_* time_mix_*"),
]);

/// One pattern, its first eight bytes ready to be compared at once: most rules are refused by that comparison alone.
#[derive(Clone, Copy, Debug)]
struct Rule {
    head: u64,
    mask: u64,
    text: &'static [u8],
    prefix: bool,
    component: Component,
}

/// Patterns grouped by first byte and, within one, longest first; built by the compiler.
#[derive(Debug)]
pub struct Table<const N: usize> {
    rules: [Rule; N],
    /// Where the rules of each first byte begin; the next entry is where they end.
    starts: [u16; 129],
}

impl<const N: usize> Table<N> {
    /// Splits the lists into patterns and sorts them. Fails to compile when there are more than `N`.
    const fn new(lists: &[(Component, &'static str)]) -> Self {
        let empty = Rule { head: 0, mask: 0, text: b"", prefix: false, component: Component::Other };
        let mut rules = [empty; N];
        let mut n = 0;
        let mut list = 0;
        while list < lists.len() {
            let mut rest = lists[list].1.as_bytes();
            while !rest.is_empty() {
                let mut end = 0;
                while end < rest.len() && rest[end] != b' ' {
                    end += 1;
                }
                if end > 0 {
                    let mut at = n;
                    let rule = Rule::new(rest.split_at(end).0, lists[list].0);
                    while at > 0 && rule.before(&rules[at - 1]) {
                        rules[at] = rules[at - 1];
                        at -= 1;
                    }
                    rules[at] = rule;
                    n += 1;
                    rest = rest.split_at(end).1;
                } else {
                    rest = rest.split_at(1).1;
                }
            }
            list += 1;
        }
        let mut starts = [0; 129];
        let mut at = 0;
        let mut byte = 0;
        while byte < 129 {
            while at < n && (rules[at].text[0] as usize) < byte {
                at += 1;
            }
            starts[byte] = at as u16;
            byte += 1;
        }
        Self { rules, starts }
    }

    /// The component of the longest pattern that fits.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Component> {
        let bytes = name.as_bytes();
        let first = usize::from(*bytes.first()?);
        let rules = self.rules.get(usize::from(*self.starts.get(first)?)..usize::from(*self.starts.get(first + 1)?))?;
        let head = head(bytes);
        rules
            .iter()
            .find(|rule| {
                head & rule.mask == rule.head
                    && (if rule.prefix { bytes.len() >= rule.text.len() } else { bytes.len() == rule.text.len() })
                    && (rule.text.len() <= 8 || bytes[8..].starts_with(&rule.text[8..]))
            })
            .map(|rule| rule.component)
    }
}

impl Rule {
    const fn new(pattern: &'static [u8], component: Component) -> Self {
        let prefix = pattern[pattern.len() - 1] == b'*';
        let text = if prefix { pattern.split_at(pattern.len() - 1).0 } else { pattern };
        let mask = if text.len() >= 8 { u64::MAX } else { (1 << (8 * text.len())) - 1 };
        Self { head: head(text), mask, text, prefix, component }
    }

    /// Order of the table: first byte, then longer before shorter, then a whole name before a prefix.
    const fn before(&self, other: &Self) -> bool {
        if self.text[0] != other.text[0] {
            return self.text[0] < other.text[0];
        }
        if self.text.len() != other.text.len() {
            return self.text.len() > other.text.len();
        }
        !self.prefix && other.prefix
    }
}

/// The first eight bytes as one number, zeros after the end.
const fn head(bytes: &[u8]) -> u64 {
    if let Some(eight) = bytes.first_chunk::<8>() {
        return u64::from_le_bytes(*eight);
    }
    let mut value = 0;
    let mut i = 0;
    while i < bytes.len() {
        value |= (bytes[i] as u64) << (8 * i);
        i += 1;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pattern_wins() {
        assert_eq!(NODES.find("ffn_up"), Some(Mlp));
        assert_eq!(NODES.find("ffn_norm"), Some(Norm));
        assert_eq!(NODES.find("ffn_norm_exps"), Some(Moe));
        assert_eq!(NODES.find("ffn_inp"), Some(Residual));
        assert_eq!(NODES.find("ffn_inp_x"), Some(Mlp));
        assert_eq!(WEIGHTS.find("ffn_gate"), Some(Mlp));
        assert_eq!(WEIGHTS.find("ffn_gate_exps"), Some(Moe));
        assert_eq!(WEIGHTS.find("ffn_gate.7"), Some(Moe));
    }

    #[test]
    fn strange_names_fit_nothing() {
        for name in ["", "\u{e9}t\u{e9}", "\u{7f}", "xyz", "Qcu"] {
            assert_eq!(NODES.find(name), None, "{name}");
        }
    }

    #[test]
    fn no_pattern_is_given_twice() {
        for table in [&NODES.rules[..], &WEIGHTS.rules[..]] {
            for (i, rule) in table.iter().enumerate().filter(|(_, rule)| !rule.text.is_empty()) {
                let twice = table[..i].iter().any(|other| other.text == rule.text && other.prefix == rule.prefix);
                assert!(!twice, "{}", String::from_utf8_lossy(rule.text));
            }
        }
    }
}
