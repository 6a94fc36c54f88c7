//! Weights in DeepSeek's block-FP8 form: E4M3 codes, and beside them `weight_scale_inv`, F32, one
//! number for each 128 x 128 block, which the codes are multiplied by.
//!
//! Source: DeepSeek-V3's `README_WEIGHTS` and its `quantization_config`.

use serde::Deserialize;
use shoal_kernels::fp8::{BLOCK, Quantized, ScaleFormat, Tiling};

/// How the name of a weight's scales ends, after the weight's own name.
const SCALE_ENDING: &str = "_scale_inv";

/// The size of a block, [out, in].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block(pub [usize; 2]);

/// `quantization_config` as written. What is not named here changes nothing about weights.
#[derive(Debug, Deserialize)]
struct Section {
    quant_method: Option<String>,
    fmt: Option<String>,
    weight_block_size: Option<Vec<u32>>,
}

/// The name of a weight's scales.
pub(crate) fn scale_name(weight: &str) -> String {
    format!("{weight}{SCALE_ENDING}")
}

/// The weight that scales of this name are of.
pub(crate) fn weight_of_scales(scales: &str) -> Option<&str> {
    scales.strip_suffix(SCALE_ENDING)
}

impl Block {
    /// DeepSeek's own, and the one we write.
    pub const DEEPSEEK: Self = Self([BLOCK, BLOCK]);

    /// Of a `config.json`; `None` where nothing is quantised.
    ///
    /// # Errors
    /// A quantisation that is not DeepSeek's.
    pub(crate) fn of_config(config: &serde_json::Value) -> Result<Option<Self>, String> {
        let given = match config.get("quantization_config") {
            None | Some(serde_json::Value::Null) => return Ok(None),
            Some(given) => given,
        };
        let section: Section = serde_json::from_value(given.clone())
            .map_err(|error| format!("quantization_config: {error}"))?;
        let method = section.quant_method.unwrap_or_default();
        if method != "fp8" {
            return Err(format!("quantization_config.quant_method: wanted fp8, got {method:?}"));
        }
        if let Some(fmt) = section.fmt.filter(|fmt| fmt != "e4m3") {
            return Err(format!("quantization_config.fmt: wanted e4m3, got {fmt:?}"));
        }
        match section.weight_block_size.as_deref() {
            Some([rows, cols]) if 0 < *rows && 0 < *cols => {
                Ok(Some(Self([*rows as usize, *cols as usize])))
            }
            other => Err(format!(
                "quantization_config.weight_block_size: wanted two numbers above 0, got {other:?}"
            )),
        }
    }

    /// Shape of the scales of a weight [out, in].
    pub(crate) fn scales_shape(self, shape: &[usize]) -> Vec<usize> {
        shape.iter().zip(self.0).map(|(n, block)| n.div_ceil(block)).collect()
    }

    /// Multiplies decoded codes [out, in] by the scales of their blocks, in place.
    pub(crate) fn apply(self, values: &mut [f32], cols: usize, scales: &[f32]) {
        let [block_rows, block_cols] = self.0;
        let across = cols.div_ceil(block_cols);
        for (row, values) in values.chunks_exact_mut(cols.max(1)).enumerate() {
            let scales = &scales[row / block_rows * across..][..across];
            for (values, scale) in values.chunks_mut(block_cols).zip(scales) {
                for value in values {
                    *value *= scale;
                }
            }
        }
    }
}

/// Codes and scales of a weight [rows, cols] in blocks of 128 x 128. Scales are powers of two, as
/// in training: a model trained in FP8 leaves as the very numbers that it computed with.
pub(crate) fn quantise(values: &[f32], rows: usize, cols: usize) -> (Vec<u8>, Vec<f32>) {
    let quantized = Quantized::quantise_f32(values, rows, cols, Tiling::Block, ScaleFormat::Pow2);
    let scales = quantized.scales();
    (quantized.codes().to_vec(), (0..scales.len()).map(|at| scales.value(at)).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use shoal_kernels::compare::Random;

    use super::*;
    use crate::StoredType;
    use crate::numbers::widen;

    #[test]
    fn codes_and_scales_give_what_the_kernels_give() {
        let (rows, cols) = (130, 259);
        let values = Random::new(3).uniform(rows * cols, -2.0, 2.0);
        let (codes, scales) = quantise(&values, rows, cols);
        assert_eq!(scales.len(), 2 * 3);
        let mut got = widen(StoredType::F8E4m3, &codes);
        Block::DEEPSEEK.apply(&mut got, cols, &scales);
        let want = Quantized::quantise_f32(&values, rows, cols, Tiling::Block, ScaleFormat::Pow2);
        assert_eq!(got, want.dequantise());
    }

    #[test]
    fn blocks_of_any_size_scale_their_own_elements() {
        let mut values = vec![1.0; 3 * 5];
        Block([2, 3]).apply(&mut values, 5, &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(values[..5], [1.0, 1.0, 1.0, 2.0, 2.0]);
        assert_eq!(values[5..10], values[..5]);
        assert_eq!(values[10..], [3.0, 3.0, 3.0, 4.0, 4.0]);
        assert_eq!(Block([2, 3]).scales_shape(&[3, 5]), [2, 2]);
    }

    #[test]
    fn other_quantisations_are_refused_by_name() {
        let check = |config: serde_json::Value, want: &str| {
            let got = format!("{:?}", Block::of_config(&config));
            assert!(got.contains(want), "{got}");
        };
        check(json!({}), "Ok(None)");
        check(json!({ "quantization_config": null }), "Ok(None)");
        let section = |section: serde_json::Value| json!({ "quantization_config": section });
        let good = json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]});
        check(section(good), "Ok(Some(Block([128, 128])))");
        check(section(json!({"quant_method": "gptq", "bits": 4})), "wanted fp8, got \\\"gptq\\\"");
        check(section(json!({"quant_method": "fp8", "fmt": "e5m2"})), "wanted e4m3");
        check(section(json!({"quant_method": "fp8"})), "wanted two numbers above 0");
        let zero = json!({"quant_method": "fp8", "weight_block_size": [0, 128]});
        check(section(zero), "wanted two numbers above 0");
        check(section(json!(3)), "quantization_config: invalid type");
    }
}
