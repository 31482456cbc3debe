//! Sections about balance: compute threads, and the experts of a mixture.

use super::super::units::{count, known, milliseconds, number};
use super::card;
use super::plot::columns;
use super::svg::{Svg, WIDTH};
use crate::analyze::Session;

/// Cells of the heat map; with more, neighbouring experts share one.
const CELLS: usize = 24_000;

pub(super) fn threads(session: &Session) -> String {
    let Some(threads) = &session.threads else { return String::new() };
    let value = |(i, &us): (usize, &f64)| (i.to_string(), us, format!("thread {i}: {} a step", milliseconds(us / 1e3)));
    let values: Vec<_> = threads.mean_busy_us.iter().enumerate().map(value).collect();
    let d = threads.imbalance;
    let aside = format!(
        "Mean time outside barriers in {} sampled steps. Largest over mean: median {:.2}, p95 {:.2}, at most {:.2}; 1 is perfect.",
        count(threads.steps),
        d.p50,
        d.p95,
        d.max
    );
    card("Compute threads", &aside, &columns(&values, |us| milliseconds(us / 1e3), "busy time of each thread"))
}

pub(super) fn heatmap(session: &Session) -> String {
    let layers = &session.moe;
    let experts = layers.iter().map(|l| l.counts.len()).max().unwrap_or(0);
    if experts == 0 {
        return String::new();
    }
    let per_cell = (experts * layers.len()).div_ceil(CELLS).max(1);
    let columns = experts.div_ceil(per_cell);
    let (left, right) = (64.0, 215.0);
    let width = (WIDTH - left - right) / columns as f64;
    let height = (300.0 / layers.len() as f64).clamp(4.0, 20.0);
    let mut svg = Svg::new(WIDTH, layers.len() as f64 * height + 26.0);
    let every = layers.len().div_ceil(25).max(1);
    for (row, layer) in layers.iter().enumerate() {
        let top = row as f64 * height;
        let mean = layer.counts.iter().map(|&n| n as f64).sum::<f64>() / layer.counts.len().max(1) as f64;
        for (column, chunk) in layer.counts.chunks(per_cell).enumerate() {
            let load = chunk.iter().map(|&n| n as f64).sum::<f64>() / chunk.len() as f64;
            let relative = if mean > 0.0 { load / mean } else { 0.0 };
            let place = [left + column as f64 * width, top, width, height];
            let first = column * per_cell;
            let name = if chunk.len() == 1 {
                format!("expert {first}")
            } else {
                format!("experts {first} to {}", first + chunk.len() - 1)
            };
            let tip = format!(
                "layer {}, {name}: {} times, {} of the mean load",
                layer.layer_id,
                number(load),
                number(relative)
            );
            // Three times the mean is as dark as it gets: beyond that the number in the tip tells more than a shade.
            svg.rect(place, "cell", "");
            svg.shade(place, "heat", (relative / 3.0).clamp(0.0, 0.999), &tip);
        }
        if row % every == 0 {
            svg.text(left - 6.0, top + height / 2.0 + 4.0, "e", &format!("layer {}", layer.layer_id));
            let balance = format!(
                "max/mean {}, entropy {}, {} idle",
                known(layer.max_over_mean, number),
                known(layer.normalized_entropy, |e| format!("{e:.3}")),
                layer.idle_experts
            );
            svg.text(WIDTH - right + 8.0, top + height / 2.0 + 4.0, "", &balance);
        }
    }
    let bottom = layers.len() as f64 * height + 16.0;
    svg.text(left, bottom, "", "expert 0");
    svg.text(WIDTH - right, bottom, "e", &format!("expert {}", experts - 1));
    let shared = if per_cell > 1 { format!(" Each cell stands for {per_cell} experts.") } else { String::new() };
    let aside = format!(
        "How often the router chose each expert, relative to the mean of its layer; {} of {experts} experts a token.{shared}",
        layers[0].experts_used
    );
    card("Experts", &aside, &svg.finish("load of each expert by layer"))
}
