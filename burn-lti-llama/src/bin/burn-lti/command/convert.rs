//! `burn-lti convert`

use std::fs;

use anyhow::{Result, bail};
use burn_lti_llama::convert::{to_folder, to_gguf};
use burn_lti_llama::gguf::{BlockType, is_gguf};
use burn_lti_llama::hf::{ExportForm, WeightFiles, WeightType};

use super::check_replaceable;
use crate::args::{ConvertArgs, ConvertTo};
use crate::streams::say;

pub(crate) fn run(args: &ConvertArgs) -> Result<()> {
    let to = args.to.unwrap_or(match is_gguf(&args.out) {
        true => ConvertTo::Gguf,
        false => ConvertTo::Folder,
    });
    let kind = match args.dtype {
        Some(kind) => kind,
        None => match WeightFiles::open(&args.model)?.dtype() {
            WeightType::F32 => BlockType::F32,
            WeightType::F16 => BlockType::F16,
            WeightType::Bf16 => BlockType::Bf16,
        },
    };
    match to {
        ConvertTo::Gguf => {
            if !is_gguf(&args.out) {
                bail!(
                    "{} does not end in .gguf, by which programs know such a file: name it so",
                    args.out.display()
                );
            }
            check_replaceable(&args.out, args.overwrite)?;
            if args.max_shard_size.is_some() {
                bail!("--max-shard-size is of folders: a GGUF file is one file");
            }
            to_gguf(&args.model, &args.accept.accept, kind, &args.out)?;
        }
        ConvertTo::Folder => {
            let dtype = match kind {
                BlockType::F32 => WeightType::F32,
                BlockType::F16 => WeightType::F16,
                BlockType::Bf16 => WeightType::Bf16,
                other => bail!("a folder holds no {other}: give --dtype f32, f16 or bf16"),
            };
            check_folder(args)?;
            let form = ExportForm {
                dtype,
                max_shard_size: args.max_shard_size.map(|size| size.bytes()),
            };
            to_folder(&args.model, &args.accept.accept, form, &args.out)?;
        }
    }
    say!("{kind}: {}", args.out.display());
    Ok(())
}

/// The folder is empty or not there, or what is in it may be replaced; what is read is not.
fn check_folder(args: &ConvertArgs) -> Result<()> {
    let out = &args.out;
    let is_empty = match out.read_dir() {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) if out.symlink_metadata().is_ok() => {
            bail!(
                "{} is there and no folder that can be read: choose another --out",
                out.display()
            )
        }
        Err(_) => true,
    };
    if !is_empty && !args.overwrite {
        bail!(
            "{} holds files already: choose another --out, or add --overwrite to replace those of a model in it",
            out.display()
        );
    }
    let same = fs::canonicalize(out)
        .ok()
        .zip(fs::canonicalize(&args.model).ok());
    if same.is_some_and(|(out, model)| out == model) {
        bail!(
            "{} is the model itself: choose another --out",
            out.display()
        );
    }
    Ok(())
}
