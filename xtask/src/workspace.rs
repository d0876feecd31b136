//! Asks cargo about this workspace.

use anyhow::{Context as _, Result};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::process;

/// Returns cargo's metadata of this workspace, without dependencies.
pub(crate) fn metadata() -> Result<Metadata> {
    let metadata = MetadataCommand::new()
        .manifest_path(process::root().join("Cargo.toml"))
        .no_deps()
        .exec();
    metadata.context("cargo cannot read the workspace")
}
