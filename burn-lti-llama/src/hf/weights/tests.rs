//! Tests of reading and writing weights.

use std::fs;

use burn_lti::files::FileError;
use half::{bf16, f16};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::write::{Print, hash, read_back};
use super::*;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn assert_says(error: &WeightsError, parts: &[&str]) {
    let text = error.to_string();
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
}

/// A file of this header, followed by `size` zeros.
fn raw(path: &Path, header: &str, size: usize) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + size, 0);
    fs::write(path, bytes).unwrap();
}

fn open_raw(header: &Value, size: usize) -> Result<WeightFiles, WeightsError> {
    let folder = folder();
    raw(&folder.path().join(WEIGHTS), &header.to_string(), size);
    WeightFiles::open(folder.path())
}

fn tensor(name: &str, shape: &[usize]) -> NewTensor<'static> {
    let size = shape.iter().product::<usize>();
    NewTensor::new(name, shape, move || {
        Ok((0..size).map(|n| n as f32 + 0.5).collect())
    })
}

/// A folder with two shards, `a` in the first and `b` in the second, and this index.
fn sharded(weight_map: &Value) -> TempDir {
    let folder = folder();
    for (shard, name) in [("1.safetensors", "a"), ("2.safetensors", "b")] {
        write_weights(
            &folder.path().join(shard),
            WeightType::F32,
            [tensor(name, &[2])],
        )
        .unwrap();
    }
    let index = json!({"metadata": {"total_size": 16}, "weight_map": weight_map});
    fs::write(folder.path().join(WEIGHTS_INDEX), index.to_string()).unwrap();
    folder
}

fn open_sharded(weight_map: Value) -> Result<WeightFiles, WeightsError> {
    WeightFiles::open(sharded(&weight_map).path())
}

#[test]
fn what_is_written_is_read() {
    let folder = folder();
    let tensors = [
        NewTensor::new("b", [2, 2], || Ok(vec![1.0, -2.5, f32::MIN_POSITIVE, 1e30])),
        tensor("a", &[3]),
        tensor("empty", &[0, 4]),
        tensor("scalar", &[]),
    ];
    write_weights(&folder.path().join(WEIGHTS), WeightType::F32, tensors).unwrap();

    let files = WeightFiles::open(folder.path()).unwrap();
    assert_eq!(
        files.names().collect::<Vec<_>>(),
        ["a", "b", "empty", "scalar"]
    );
    let info = files.info("b").unwrap();
    assert_eq!(
        (&info.shape[..], info.dtype),
        (&[2, 2][..], WeightType::F32)
    );
    assert_eq!(files.read_f32("a").unwrap(), [0.5, 1.5, 2.5]);
    assert_eq!(
        files.read_f32("b").unwrap(),
        [1.0, -2.5, f32::MIN_POSITIVE, 1e30]
    );
    assert!(files.read_f32("empty").unwrap().is_empty());
    assert_eq!(files.read_f32("scalar").unwrap(), [0.5]);
    assert!(files.info("c").is_none());
}

#[test]
fn the_safetensors_library_reads_our_files() {
    let folder = folder();
    let path = folder.path().join(WEIGHTS);
    write_weights(
        &path,
        WeightType::F32,
        [tensor("b", &[1, 2]), tensor("a", &[3])],
    )
    .unwrap();
    let bytes = fs::read(&path).unwrap();
    let (length, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(length % 8, 0);
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    assert_eq!(metadata.offset_keys(), ["a", "b"]);
}

#[test]
fn half_precision_becomes_f32_exactly() {
    let folder = folder();
    let header = json!({
        "h": {"dtype": "F16", "shape": [3], "data_offsets": [0, 6]},
        "b": {"dtype": "BF16", "shape": [3], "data_offsets": [6, 12]},
    })
    .to_string();
    let values = [1.5, -0.25, 3072.0];
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()));
    bytes.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()));
    fs::write(folder.path().join(WEIGHTS), bytes).unwrap();

    let files = WeightFiles::open(folder.path()).unwrap();
    assert_eq!(files.read_f32("h").unwrap(), values);
    assert_eq!(files.read_f32("b").unwrap(), values);
    assert_eq!(files.info("h").unwrap().dtype, WeightType::F16);
    assert_eq!(files.info("b").unwrap().dtype, WeightType::Bf16);
    let halves = values.map(|value| f16::from_f32(value).to_le_bytes());
    assert_eq!(files.read_bytes("h").unwrap(), halves.concat());
    assert!(matches!(
        files.read_bytes("x"),
        Err(WeightsError::NoTensor { tensor, .. }) if tensor == "x"
    ));
}

#[test]
fn a_number_that_is_none_is_neither_written_nor_read() {
    let folder = folder();
    let path = folder.path().join(WEIGHTS);
    write_weights(&path, WeightType::F32, [tensor("a", &[2])]).unwrap();
    let before = fs::read(&path).unwrap();
    let nan = NewTensor::new("a", [2], || Ok(vec![0.0, f32::NAN]));
    let error = write_weights(&path, WeightType::F32, [nan]).unwrap_err();
    assert_says(&error, &["a of ", "holds NaN"]);
    assert_eq!(fs::read(&path).unwrap(), before);

    let mut damaged = before;
    let last = damaged.len() - 4;
    damaged[last..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    fs::write(&path, damaged).unwrap();
    let error = WeightFiles::open(folder.path())
        .unwrap()
        .read_f32("a")
        .unwrap_err();
    assert_says(&error, &["a of ", "holds inf"]);
}

#[test]
fn values_that_cannot_be_had_leave_the_file_alone() {
    let folder = folder();
    let path = folder.path().join(WEIGHTS);
    write_weights(&path, WeightType::F32, [tensor("a", &[2])]).unwrap();
    let before = fs::read(&path).unwrap();
    let lost = NewTensor::new("a", [2], || Err(WeightsError::tensor("a", "is gone")));
    let error = write_weights(&path, WeightType::F32, [lost]).unwrap_err();
    assert!(error.to_string().contains("gone"));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn shards_are_one_set_of_tensors() {
    let files = open_sharded(json!({"a": "1.safetensors", "b": "2.safetensors"})).unwrap();
    assert_eq!(files.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(files.read_f32("b").unwrap(), [0.5, 1.5]);
}

#[test]
fn a_folder_without_weights_is_named() {
    let folder = folder();
    let error = WeightFiles::open(folder.path()).unwrap_err();
    assert!(matches!(&error, WeightsError::Missing { folder: f } if f == folder.path()));
}

#[test]
fn an_index_has_to_fit_its_shards() {
    let error = open_sharded(json!({"a": "1.safetensors", "b": "3.safetensors"})).unwrap_err();
    assert!(matches!(&error, WeightsError::Read { file, .. } if file.ends_with("3.safetensors")));

    for tensor in ["a", "c"] {
        let map = json!({"a": "1.safetensors", "b": "2.safetensors", tensor: "2.safetensors"});
        let error = open_sharded(map).unwrap_err();
        let holds = format!("2.safetensors should hold {tensor}, says the index");
        assert_says(&error, &[&holds]);
    }

    let folder = sharded(&json!({"a": "1.safetensors", "b": "2.safetensors"}));
    let second = folder.path().join("2.safetensors");
    write_weights(
        &second,
        WeightType::F32,
        [tensor("a", &[2]), tensor("b", &[2])],
    )
    .unwrap();
    let error = WeightFiles::open(folder.path()).unwrap_err();
    assert_says(
        &error,
        &["a is in ", "1.safetensors and in ", "2.safetensors: remove"],
    );
}

#[test]
fn an_index_that_is_none_is_an_error() {
    let error = open_sharded(json!(["a"])).unwrap_err();
    assert_says(&error, &["is not an index of safetensors shards"]);
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    for shard in ["../1.safetensors", "/tmp/1.safetensors", "..", ""] {
        let error = open_sharded(json!({"a": shard})).unwrap_err();
        assert_says(&error, &[&format!("names the shard {shard:?}: ")]);
    }
}

#[test]
fn old_rotary_buffers_are_ignored() {
    let header = json!({
        "model.layers.0.self_attn.rotary_emb.inv_freq":
            {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
    });
    let files = open_raw(&header, 12).unwrap();
    assert_eq!(files.names().collect::<Vec<_>>(), ["a"]);

    let map = json!({"a": "1.safetensors", "x.rotary_emb.inv_freq": "1.safetensors"});
    assert_eq!(open_sharded(map).unwrap().names().count(), 1);
}

#[test]
fn other_types_of_numbers_are_refused_by_name() {
    for (dtype, size) in [("I64", 8), ("F64", 8), ("F8_E4M3", 1), ("BOOL", 1)] {
        let info = json!({"dtype": dtype, "shape": [1], "data_offsets": [0, size]});
        let error = open_raw(&json!({"a": info}), size).unwrap_err();
        assert_says(
            &error,
            &["a in ", &format!(" is {dtype}, which is not supported")],
        );
    }
}

#[test]
fn cut_off_and_padded_files_are_refused() {
    let folder = folder();
    let path = folder.path().join(WEIGHTS);
    write_weights(&path, WeightType::F32, [tensor("a", &[4])]).unwrap();
    let whole = fs::read(&path).unwrap();
    for size in (0..whole.len()).chain([whole.len() + 1]) {
        let mut bytes = whole.clone();
        bytes.resize(size, 0);
        fs::write(&path, bytes).unwrap();
        let error = WeightFiles::open(folder.path()).unwrap_err();
        let found = format!(" bytes and has {size}: ");
        assert_says(
            &error,
            &[&format!("{} should have ", path.display()), &found],
        );
        assert!(
            !error.to_string().contains(&format!("have {size} bytes")),
            "{error}"
        );
    }
}

#[test]
fn a_header_of_absurd_length_is_refused() {
    let folder = folder();
    for length in [MAX_HEADER + 1, u64::MAX] {
        fs::write(folder.path().join(WEIGHTS), length.to_le_bytes()).unwrap();
        let error = WeightFiles::open(folder.path()).unwrap_err();
        assert_says(&error, &[&format!("claims a header of {length} bytes")]);
    }
}

#[test]
fn broken_headers_are_refused() {
    let folder = folder();
    let a = |shape: Value, offsets: [u64; 2]| {
        json!({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).to_string()
    };
    let huge = u64::MAX / 32;
    let overflow: serde_json::Map<String, Value> = (0..9)
        .map(|n| {
            let offsets = [n * huge * 4, (n + 1).saturating_mul(huge * 4)];
            let info = json!({"dtype": "F32", "shape": [huge], "data_offsets": offsets});
            (n.to_string(), info)
        })
        .collect();
    for header in [
        "not a header".to_owned(),
        "[]".to_owned(),
        "\u{1}".to_owned(),
        "[".repeat(10_000),
        a(json!([1]), [4, 8]),
        a(json!([1]), [4, 0]),
        a(json!([2]), [0, 4]),
        a(json!([-1]), [0, 4]),
        a(json!([u64::MAX, u64::MAX]), [0, 4]),
        a(json!([u64::MAX]), [0, 4]),
        json!({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}).to_string(),
        json!({
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        })
        .to_string(),
        Value::Object(overflow).to_string(),
    ] {
        raw(&folder.path().join(WEIGHTS), &header, 4);
        let error = WeightFiles::open(folder.path()).unwrap_err();
        assert_says(&error, &["has a broken header"]);
    }
}

#[test]
fn sizes_that_add_up_to_all_numbers_do_not_overflow() {
    // Eight tensors whose bytes end just below 2^64: one header more would wrap around.
    let each = u64::MAX / 8 / 4 * 4;
    let header: serde_json::Map<String, Value> = (0..8)
        .map(|n| {
            let offsets = [n * each, (n + 1) * each];
            let info = json!({"dtype": "BOOL", "shape": [each], "data_offsets": offsets});
            (n.to_string(), info)
        })
        .collect();
    let error = open_raw(&Value::Object(header), 4).unwrap_err();
    assert_says(&error, &["should have ", " bytes and has "]);
}

#[test]
fn a_folder_in_a_files_place_cannot_be_read() {
    let folder = folder();
    fs::create_dir(folder.path().join(WEIGHTS)).unwrap();
    let error = WeightFiles::open(folder.path()).unwrap_err();
    assert!(matches!(error, WeightsError::Read { .. }), "{error}");
}

#[test]
fn an_unknown_tensor_is_named() {
    let files = open_raw(&json!({}), 0).unwrap();
    let error = files.read_f32("model.norm.weight").unwrap_err();
    assert!(
        matches!(&error, WeightsError::NoTensor { tensor, .. } if tensor == "model.norm.weight")
    );
}

fn expected(tensors: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    let owned = tensors
        .iter()
        .map(|(name, shape)| (name.to_string(), shape.to_vec()));
    owned.collect()
}

fn with_tensors(names: &[&str]) -> WeightFiles {
    let folder = folder();
    let tensors = names.iter().map(|name| tensor(name, &[2, 3]));
    write_weights(&folder.path().join(WEIGHTS), WeightType::F32, tensors).unwrap();
    WeightFiles::open(folder.path()).unwrap()
}

#[test]
fn weights_have_to_be_those_of_the_model() {
    let files = with_tensors(&["a", "b", "c"]);
    let shape: &[usize] = &[2, 3];
    let all = expected(&[("a", shape), ("b", shape), ("c", shape)]);
    files.check(&all, &[]).unwrap();

    let other = expected(&[("a", shape), ("b", &[3, 2]), ("d", shape)]);
    let error = files.check(&other, &[]).unwrap_err();
    let text = error.to_string();
    let WeightsError::Mismatch {
        missing,
        unused,
        shapes,
        ..
    } = error
    else {
        panic!("{text}");
    };
    assert_eq!((missing, unused), (vec!["d".into()], vec!["c".into()]));
    assert_eq!(shapes[0].to_string(), "b (is [2, 3], should be [3, 2])");
    for part in ["missing: d", "unused: c", "of another shape: b (is"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn tied_weights_may_be_there_or_not_but_in_their_shape() {
    let shape: &[usize] = &[2, 3];
    let [just, both] = [&["a"] as &[_], &["a", "head"]].map(with_tensors);
    let named = expected(&[("a", shape), ("head", shape)]);
    let unnamed = expected(&[("a", shape)]);
    for files in [&just, &both] {
        files.check(&named, &["head"]).unwrap();
        files.check(&unnamed, &["head"]).unwrap();
    }
    assert!(just.check(&named, &[]).is_err());
    assert!(both.check(&unnamed, &[]).is_err());
    let wrong = expected(&[("a", shape), ("head", &[6])]);
    assert!(both.check(&wrong, &["head"]).is_err());
}

#[test]
fn long_lists_of_names_end_in_a_count() {
    let names: Vec<String> = (10..30).map(|n| format!("t{n}")).collect();
    let files = with_tensors(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let text = files.check(&[], &[]).unwrap_err().to_string();
    assert!(text.ends_with("t18, t19 and 10 more"), "{text}");
    assert!(!text.contains("missing"), "{text}");
}

#[test]
fn tensors_that_cannot_be_written_leave_the_old_file() {
    let folder = folder();
    let path = folder.path().join(WEIGHTS);
    write_weights(&path, WeightType::F32, [tensor("old", &[1])]).unwrap();
    let old = fs::read(&path).unwrap();

    let short = || NewTensor::new("b", [3], || Ok(vec![0.0; 2]));
    let error = write_weights(&path, WeightType::F32, [tensor("a", &[2]), short()]).unwrap_err();
    assert_says(&error, &["b of shape [3] was given 2 values"]);
    let error = write_weights(
        &path,
        WeightType::F32,
        [tensor("a", &[2]), tensor("a", &[2])],
    )
    .unwrap_err();
    assert_says(&error, &["a is what two tensors to be written are called"]);
    for shape in [[usize::MAX, 2], [usize::MAX / 4, 1]] {
        let error = write_weights(
            &path,
            WeightType::F32,
            [NewTensor::new("a", shape, || Ok(Vec::new()))],
        )
        .unwrap_err();
        assert!(matches!(&error, WeightsError::Layout { file, .. } if *file == path));
    }

    assert_eq!(fs::read(&path).unwrap(), old);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let path = folder().path().join("nowhere").join(WEIGHTS);
    let error = write_weights(&path, WeightType::F32, [tensor("a", &[1])]).unwrap_err();
    assert!(matches!(error, WeightsError::Write(FileError::Write { file, .. }) if file == path));
}

#[test]
fn a_file_that_reads_back_differently_is_noticed() {
    let folder = folder();
    let path = folder.path().join(WEIGHTS);
    write_weights(&path, WeightType::F32, [tensor("a", &[2])]).unwrap();
    let shard = Shard::open(path.clone()).unwrap();
    let hash = hash(&shard.map[shard.map.len() - 8..]);
    let print = |shape: &[usize], hash| {
        let shape = shape.to_vec();
        BTreeMap::from([("a".to_owned(), Print { shape, hash })])
    };
    read_back(&path, &print(&[2], hash)).unwrap();
    for other in [print(&[2], !hash), print(&[2, 1], hash), BTreeMap::new()] {
        let error = read_back(&path, &other).unwrap_err();
        assert!(
            matches!(error, WeightsError::Write(FileError::ReadBack { .. })),
            "{error}"
        );
    }
}

#[test]
fn weights_are_cut_into_files_of_a_size() {
    let folder = folder();
    let write = |max| {
        let tensors = [tensor("c", &[6]), tensor("a", &[2]), tensor("b", &[3])];
        write_weights_to_folder(folder.path(), WeightType::F32, max, tensors).unwrap();
        let files = WeightFiles::open(folder.path()).unwrap();
        assert_eq!(files.dtype(), WeightType::F32);
        for (name, size) in [("a", 2), ("b", 3), ("c", 6)] {
            assert_eq!(files.read_f32(name).unwrap().len(), size);
        }
        let entries = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(write(None), [WEIGHTS]);
    // 8 and 12 bytes, then 24, which are more than there may be.
    let two = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        WEIGHTS_INDEX,
    ];
    assert_eq!(write(Some(20)), two);
    let index: Value =
        serde_json::from_slice(&fs::read(folder.path().join(WEIGHTS_INDEX)).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], json!(44));
    assert_eq!(index["weight_map"]["b"], json!(two[0]));
}

#[test]
fn other_weights_are_named_for_what_they_are() {
    for (name, part) in [
        ("pytorch_model.bin", "PyTorch's format"),
        ("model-Q4.gguf", "holds GGUF"),
    ] {
        let folder = folder();
        fs::write(folder.path().join(name), "x").unwrap();
        assert_says(&WeightFiles::open(folder.path()).unwrap_err(), &[part]);
    }
    let folder = folder();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    fs::write(folder.path().join(WEIGHTS), pointer).unwrap();
    assert_says(
        &WeightFiles::open(folder.path()).unwrap_err(),
        &["git lfs pull"],
    );
}
