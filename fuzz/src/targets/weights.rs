//! Safetensors: the weights of a model, whole and in shards, and the codec of all other files.

use std::collections::BTreeMap;

use burn_lti::files::TensorFile;
use burn_lti_llama::hf::WeightFiles;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::{folder, more_seeds, seeds, write};
use crate::Target;
use crate::memory::BOUND;

pub(super) const WORDS: &[&str] = &[
    "\"F32\"",
    "\"F16\"",
    "\"BF16\"",
    "\"F64\"",
    "\"U8\"",
    "\"I64\"",
    "\"F8_E4M3\"",
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "\"__metadata__\"",
    "[0,0]",
    "[0,24]",
    "[24,0]",
    "[18446744073709551615,24]",
    "[4294967296,4294967296]",
    "model.layers.0.rotary_emb.inv_freq",
];

/// A file of a few tensors of these names, in several types.
pub(super) fn file(names: &[&str]) -> Vec<u8> {
    let types = [(Dtype::F32, 4), (Dtype::BF16, 2), (Dtype::F16, 2)];
    let data: Vec<u8> = (0..96)
        .map(|byte| if byte % 4 == 3 { 63 } else { byte })
        .collect();
    let view = |index: usize| {
        let (dtype, size) = types[index % types.len()];
        TensorView::new(dtype, vec![2, 3], &data[..6 * size]).expect("a tensor")
    };
    let tensors = names.iter().enumerate();
    let file = TensorFile {
        metadata: Some([("format".to_owned(), "pt".to_owned())].into()),
        tensors: tensors
            .map(|(index, name)| ((*name).to_owned(), view(index)))
            .collect(),
    };
    file.to_bytes().expect("a file")
}

/// `model.safetensors`. Of each tensor that the header promises all numbers can be had, or an error says why.
pub fn weights() -> Target {
    let dir = folder();
    let file_seeds = [file(&["a.weight", "b.weight", "c.weight"]), file(&["a"])];
    Target {
        seeds: [file_seeds.to_vec(), more_seeds("weights")].concat(),
        words: WORDS,
        bound: BOUND,
        check: Box::new(move |bytes| {
            write(&dir.path().join("model.safetensors"), bytes);
            check_folder(dir.path())
        }),
    }
}

/// `model.safetensors.index.json` beside two shards.
pub fn weights_index() -> Target {
    let dir = folder();
    write(
        &dir.path().join("one.safetensors"),
        &file(&["a.weight", "b.weight"]),
    );
    write(&dir.path().join("two.safetensors"), &file(&["c.weight"]));
    Target {
        seeds: seeds("weights_index"),
        words: &[
            "\"weight_map\"",
            "\"one.safetensors\"",
            "\"two.safetensors\"",
            "../",
            "a.weight",
            "/",
        ],
        bound: BOUND,
        check: Box::new(move |bytes| {
            write(&dir.path().join("model.safetensors.index.json"), bytes);
            check_folder(dir.path())
        }),
    }
}

fn check_folder(dir: &std::path::Path) -> bool {
    let Ok(files) = WeightFiles::open(dir) else {
        return false;
    };
    for (name, info) in files.tensors() {
        let numbers: usize = info.shape.iter().product();
        let bytes = files.read_bytes(name).expect("a tensor that is listed");
        assert_eq!(bytes.len(), numbers * info.dtype.size(), "{name}");
        if let Ok(values) = files.read_f32(name) {
            assert_eq!(values.len(), numbers, "{name}");
            assert!(values.iter().all(|value| value.is_finite()), "{name}");
        }
    }
    let expected: Vec<_> = files
        .tensors()
        .map(|(name, info)| (name.to_owned(), info.shape.clone()))
        .collect();
    files
        .check(&expected, &[])
        .expect("a folder holds what it holds");
    files.dtype();
    true
}

/// The codec of starts and checkpoints. What is read is written, and read again the same.
pub fn tensor_file() -> Target {
    Target {
        seeds: vec![file(&["a.weight", "b.weight", "c.weight"]), file(&["a"])],
        words: WORDS,
        bound: BOUND,
        check: Box::new(|bytes| {
            let Ok(read) = TensorFile::from_bytes(bytes) else {
                return false;
            };
            let written = read.to_bytes().expect("a file that was read is written");
            let again = TensorFile::from_bytes(&written).expect("it was written");
            let parts = |file: &TensorFile<'_>| -> BTreeMap<_, _> {
                let tensors = file.tensors.iter();
                tensors
                    .map(|(name, view)| {
                        let data = view.data().to_vec();
                        (name.clone(), (view.dtype(), view.shape().to_vec(), data))
                    })
                    .collect()
            };
            assert_eq!(parts(&again), parts(&read));
            let texts = |file: &TensorFile<'_>| file.metadata.clone().unwrap_or_default();
            assert_eq!(texts(&again), texts(&read));
            true
        }),
    }
}
