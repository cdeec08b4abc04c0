//! Tests of the container: files that are damaged, or made to do damage.

use std::fs;

use tempfile::TempDir;

use super::*;

/// A file that is put together by hand.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn header(tensors: u64, keys: u64) -> Self {
        Self(MAGIC.to_vec()).u32(VERSION).u64(tensors).u64(keys)
    }

    fn u32(self, number: u32) -> Self {
        self.raw(&number.to_le_bytes())
    }

    fn u64(self, number: u64) -> Self {
        self.raw(&number.to_le_bytes())
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn text(self, text: &str) -> Self {
        self.u64(text.len() as u64).raw(text.as_bytes())
    }

    /// Name, axes as the file has them, type and offset.
    fn tensor(self, name: &str, axes: &[u64], kind: u32, offset: u64) -> Self {
        let begun = self.text(name).u32(axes.len() as u32);
        let with_axes = axes.iter().fold(begun, |bytes, axis| bytes.u64(*axis));
        with_axes.u32(kind).u64(offset)
    }

    /// Zeros up to where tensors begin, and so many more.
    fn data(mut self, size: usize) -> Self {
        self.0
            .resize(self.0.len().next_multiple_of(ALIGNMENT) + size, 0);
        self
    }

    fn open(&self) -> Result<Container, GgufError> {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("model.gguf");
        fs::write(&path, &self.0).unwrap();
        Container::open(&path)
    }

    fn assert_refused(&self, part: &str) {
        let error = self.open().unwrap_err().to_string();
        assert!(
            error.contains("model.gguf") && error.contains(part),
            "{part}: {error}"
        );
    }
}

#[test]
fn keys_and_tensors_are_found_where_they_are() {
    let file = Bytes::header(1, 4)
        .text("a.number")
        .u32(kind::U16)
        .raw(&[7, 0])
        .text("a.float")
        .u32(kind::F32)
        .raw(&1e-5_f32.to_le_bytes())
        .text("a.texts")
        .u32(kind::ARRAY)
        .u32(kind::TEXT)
        .u64(2)
        .text("one")
        .text("two")
        .text("a.each")
        .u32(kind::ARRAY)
        .u32(kind::I32)
        .u64(2)
        .u32(5)
        .u32(5)
        .tensor("t", &[2, 3], 0, 0)
        .data(24)
        .open()
        .unwrap();
    assert_eq!(file.number("a.number").unwrap(), Some(7));
    assert_eq!(file.number("a.each").unwrap(), Some(5));
    assert_eq!(file.float("a.float").unwrap(), Some(1e-5));
    assert_eq!(file.texts("a.texts").unwrap(), Some(vec!["one", "two"]));
    assert_eq!(file.text("a.none").unwrap(), None);
    assert_eq!(file.tensors[0].shape, [3, 2]);
    assert_eq!(file.bytes(&file.tensors[0].bytes).len(), 24);
    for wrong in [
        file.number("a.float").map(drop),
        file.text("a.number").map(drop),
        file.texts("a.each").map(drop),
        file.floats("a.each").map(drop),
        file.bool("a.number").map(drop),
        file.float("a.texts").map(drop),
    ] {
        assert!(wrong.unwrap_err().to_string().contains("says `a."));
    }
}

#[test]
fn every_file_that_is_cut_off_is_an_error() {
    let whole = Bytes::header(1, 2)
        .text("a.texts")
        .u32(kind::ARRAY)
        .u32(kind::TEXT)
        .u64(2)
        .text("one")
        .text("two")
        .text("a.number")
        .u32(kind::U32)
        .u32(7)
        .tensor("t", &[4], 0, 0)
        .data(16);
    whole.open().unwrap();
    for length in 0..whole.0.len() {
        let cut = Bytes(whole.0[..length].to_vec());
        let error = cut.open().unwrap_err();
        let said = matches!(error, GgufError::Broken { .. } | GgufError::Read { .. });
        assert!(said, "{length}: {error}");
    }
}

#[test]
fn what_no_file_can_hold_is_refused_before_it_is_allocated() {
    const HUGE: u64 = 1 << 60;
    Bytes::header(HUGE, 0).assert_refused("claims 1152921504606846976 tensors");
    Bytes::header(0, HUGE).assert_refused("claims 1152921504606846976 keys");
    Bytes::header(0, u64::MAX).assert_refused("keys");
    let key = Bytes::header(0, 1).u64(HUGE).raw(&[0; 64]);
    key.assert_refused("bytes of a text");
    let text = Bytes::header(0, 1).text("k").u32(kind::TEXT).u64(HUGE);
    text.assert_refused("bytes of a text");
    let array = Bytes::header(0, 1).text("k").u32(kind::ARRAY);
    array
        .clone()
        .u32(kind::U8)
        .u64(HUGE)
        .assert_refused("entries of an array");
    array
        .clone()
        .u32(kind::TEXT)
        .u64(HUGE)
        .assert_refused("entries of an array");
    array
        .clone()
        .u32(kind::F64)
        .u64(u64::MAX / 4)
        .assert_refused("entries of an array");
    let nested = (0..100_000).fold(array, |bytes, _| bytes.u32(kind::ARRAY).u64(1));
    nested.assert_refused("an array of arrays");
    Bytes::header(0, 1)
        .text("k")
        .u32(77)
        .raw(&[0; 8])
        .assert_refused("type 77");
    let text = Bytes::header(0, 1)
        .u64(2)
        .raw(&[0xff, 0xfe])
        .u32(kind::U8)
        .raw(&[0]);
    text.assert_refused("no UTF-8");
}

#[test]
fn tensors_lie_within_the_file_and_apart() {
    let one =
        |axes: &[u64], kind, offset| Bytes::header(1, 0).tensor("t", axes, kind, offset).data(64);
    one(&[4], 0, 0).open().unwrap();
    one(&[17], 0, 0).assert_refused("outside its");
    one(&[4], 0, 64).assert_refused("outside its");
    one(&[4], 0, u64::MAX - 31).assert_refused("outside its");
    one(&[1 << 40, 1 << 40], 0, 0).assert_refused("outside its");
    one(&[u64::MAX, 2], 0, 0).assert_refused("outside its");
    one(&[4], 0, 8).assert_refused("no multiple of its alignment, 32");
    one(&[0, 4], 0, 0).assert_refused("an axis of 0");
    one(&[1; 5], 0, 0).assert_refused("with 5 axes");
    one(&[], 0, 0).assert_refused("with 0 axes");
    one(&[33], 8, 0).assert_refused("that its blocks of 32 do not divide");
    one(&[256], 23, 0).assert_refused("in IQ4_XS, which is not read here: take a file of F32");
    one(&[4], 99, 0).assert_refused("type 99");
    let two = |name, offset| {
        let first = Bytes::header(2, 0).tensor("t", &[16], 0, 0);
        first.tensor(name, &[8], 0, offset).data(128)
    };
    two("u", 64).open().unwrap();
    two("u", 32).assert_refused("has t and u in the same place");
    two("t", 64).assert_refused("has the tensor t twice");
}

#[test]
fn other_files_are_named_for_what_they_are() {
    Bytes(b"PK\x03\x04 and so on, for as long as it takes".to_vec())
        .assert_refused("does not begin as");
    Bytes(b"version https://git-lfs.github.com/spec/v1\n".to_vec()).assert_refused("git lfs pull");
    let version = |number: u32| Bytes(MAGIC.to_vec()).u32(number).data(64);
    version(1).assert_refused("of version 1");
    version(3_u32.swap_bytes()).assert_refused("big-endian");
    version(9).assert_refused("version 9");
    let twice = Bytes::header(0, 2)
        .text("k")
        .u32(kind::U8)
        .raw(&[1])
        .text("k")
        .u32(kind::U8)
        .raw(&[1]);
    twice.assert_refused("has the key `k` twice");
    let alignment = |value: u32| {
        Bytes::header(0, 1)
            .text(ALIGNMENT_KEY)
            .u32(kind::U32)
            .u32(value)
    };
    alignment(64).open().unwrap();
    for wrong in [0, 24, u32::MAX] {
        alignment(wrong).assert_refused("no power of two");
    }
    let error = Container::open(Path::new("absent.gguf")).unwrap_err();
    assert!(
        error.to_string().contains("cannot read absent.gguf"),
        "{error}"
    );
}
