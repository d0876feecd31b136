//! Makes the bill of materials of a program: a `CycloneDX` list of every package that is linked into it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use cargo_metadata::{DependencyKind, Metadata, Node, Package, PackageId};
use cyclonedx_bom::external_models::spdx::SpdxExpression;
use cyclonedx_bom::models::bom::{Bom, SpecVersion};
use cyclonedx_bom::models::component::{Classification, Component, Components};
use cyclonedx_bom::models::dependency::{Dependencies, Dependency};
use cyclonedx_bom::models::license::{LicenseChoice, Licenses};
use cyclonedx_bom::models::metadata::Metadata as BomMetadata;
use cyclonedx_bom::prelude::Purl;

/// Returns the bill of materials of a workspace package as JSON. It depends only on the manifests and `Cargo.lock`.
pub(crate) fn render(metadata: &Metadata, root: &Package) -> Result<Vec<u8>> {
    let resolve = metadata
        .resolve
        .as_ref()
        .context("cargo metadata has no resolved dependencies")?;
    let nodes: BTreeMap<&PackageId, &Node> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let packages: BTreeMap<&PackageId, &Package> =
        metadata.packages.iter().map(|package| (&package.id, package)).collect();

    // Only normal dependencies are linked; those for building and testing are not in the program.
    let linked = |id: &PackageId| -> Vec<&PackageId> {
        let dependencies = nodes.get(id).map_or(&[][..], |node| &node.deps);
        let of_kind = dependencies.iter().filter(|dependency| {
            dependency
                .dep_kinds
                .iter()
                .any(|kind| kind.kind == DependencyKind::Normal)
        });
        of_kind.map(|dependency| &dependency.pkg).collect()
    };
    let mut seen = BTreeSet::from([&root.id]);
    let mut next = vec![&root.id];
    while let Some(id) = next.pop() {
        for dependency in linked(id) {
            if seen.insert(dependency) {
                next.push(dependency);
            }
        }
    }
    let mut used: Vec<&Package> = seen.iter().filter_map(|id| packages.get(*id).copied()).collect();
    used.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));

    let others = used.iter().filter(|package| package.id != root.id);
    let mut bom = Bom {
        // A serial number would be different in each build, and the bill would not be reproducible.
        serial_number: None,
        metadata: Some(BomMetadata {
            component: Some(component(Classification::Application, root)?),
            ..BomMetadata::default()
        }),
        ..Bom::default()
    };
    bom.components = Some(Components(
        others
            .map(|package| component(Classification::Library, package))
            .collect::<Result<_>>()?,
    ));
    let dependency = |package: &&Package| {
        let mut dependencies: Vec<String> = linked(&package.id)
            .iter()
            .filter_map(|id| packages.get(*id))
            .map(|package| reference(package))
            .collect();
        dependencies.sort();
        dependencies.dedup();
        Dependency {
            dependency_ref: reference(package),
            dependencies,
        }
    };
    bom.dependencies = Some(Dependencies(used.iter().map(dependency).collect()));
    let mut bytes = Vec::new();
    bom.output_as_json(&mut bytes, SpecVersion::V1_5)
        .context("cannot write the bill of materials")?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn reference(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

fn component(kind: Classification, package: &Package) -> Result<Component> {
    let version = package.version.to_string();
    let mut component = Component::new(kind, package.name.as_str(), &version, Some(reference(package)));
    component.purl = Some(Purl::new("cargo", package.name.as_str(), &version)?);
    component.licenses = package
        .license
        .as_ref()
        .and_then(|license| SpdxExpression::parse_lax(license.clone()).ok())
        .map(|expression| Licenses(vec![LicenseChoice::Expression(expression)]));
    Ok(component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bill_lists_what_is_linked_and_is_the_same_every_time() {
        let bill = || {
            let metadata = crate::metadata().expect("cargo reads the workspace");
            let root = crate::package(&metadata).expect("a package");
            render(&metadata, root).expect("the bill is made")
        };
        let once = bill();
        assert_eq!(once, bill());
        let text = String::from_utf8(once).expect("valid UTF-8");
        assert!(text.contains("\"pkg:cargo/aya@"), "a dependency is missing");
        assert!(text.contains("Apache-2.0"), "a licence is missing");
        assert!(
            !text.contains("pkg:cargo/libtest-mimic@"),
            "a dependency of the tests is listed"
        );
    }
}
