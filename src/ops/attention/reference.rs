//! Attention in float64, straight from its definition; slow and obvious.

use super::AttentionDims;

/// One of q (0), k (1), v (2) at image n, token t, head h, channel i.
fn at(d: &AttentionDims, which: usize, n: usize, t: usize, h: usize, i: usize) -> usize {
    (((n * d.tokens as usize + t) * 3 + which) * d.heads as usize + h) * d.head_dim as usize + i
}

fn out_at(d: &AttentionDims, n: usize, t: usize, h: usize, i: usize) -> usize {
    ((n * d.tokens as usize + t) * d.heads as usize + h) * d.head_dim as usize + i
}

/// Rows of P, with their log-sum-exp, of one image and head.
fn probabilities(d: &AttentionDims, qkv: &[f64], n: usize, h: usize) -> (Vec<Vec<f64>>, Vec<f64>) {
    let (t, dim) = (d.tokens as usize, d.head_dim as usize);
    let mut rows = Vec::new();
    let mut lse = Vec::new();
    for i in 0..t {
        let score =
            |j: usize| d.scale() * (0..dim).map(|c| qkv[at(d, 0, n, i, h, c)] * qkv[at(d, 1, n, j, h, c)]).sum::<f64>();
        let scores: Vec<f64> = (0..t).map(score).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = most + scores.iter().map(|s| (s - most).exp()).sum::<f64>().ln();
        rows.push(scores.iter().map(|s| (s - sum).exp()).collect());
        lse.push(sum);
    }
    (rows, lse)
}

/// y [N, T, heads, D] and lse [N, heads, T].
pub fn forward(d: &AttentionDims, qkv: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (t, dim) = (d.tokens as usize, d.head_dim as usize);
    let (mut y, mut all) = (vec![0.0; d.len()], Vec::new());
    for n in 0..d.n as usize {
        for h in 0..d.heads as usize {
            let (p, lse) = probabilities(d, qkv, n, h);
            all.extend(lse);
            for (i, row) in p.iter().enumerate() {
                for c in 0..dim {
                    y[out_at(d, n, i, h, c)] = (0..t).map(|j| row[j] * qkv[at(d, 2, n, j, h, c)]).sum();
                }
            }
        }
    }
    (y, all)
}

/// dqkv [N, T, 3, heads, D].
pub fn backward(d: &AttentionDims, qkv: &[f64], dy: &[f64]) -> Vec<f64> {
    let (t, dim) = (d.tokens as usize, d.head_dim as usize);
    let mut dqkv = vec![0.0; qkv.len()];
    for n in 0..d.n as usize {
        for h in 0..d.heads as usize {
            let (p, _) = probabilities(d, qkv, n, h);
            for (i, row) in p.iter().enumerate() {
                let dp =
                    |j: usize| (0..dim).map(|c| dy[out_at(d, n, i, h, c)] * qkv[at(d, 2, n, j, h, c)]).sum::<f64>();
                let dp: Vec<f64> = (0..t).map(dp).collect();
                let delta: f64 = row.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                for j in 0..t {
                    let ds = row[j] * (dp[j] - delta) * d.scale();
                    for c in 0..dim {
                        dqkv[at(d, 0, n, i, h, c)] += ds * qkv[at(d, 1, n, j, h, c)];
                        dqkv[at(d, 1, n, j, h, c)] += ds * qkv[at(d, 0, n, i, h, c)];
                        dqkv[at(d, 2, n, j, h, c)] += row[j] * dy[out_at(d, n, i, h, c)];
                    }
                }
            }
        }
    }
    dqkv
}
