//! The face tracker's files: an npm package that the page takes from a CDN, or from here. None of it is in the binary.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA384, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Which files, of which versions, with which hashes. The page reads the same list.
const LIST: &str = include_str!("web/faces.json");

/// Where the page finds the files that this process serves.
pub(super) const HERE: &str = "/demo/faces/";

/// Why the files cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum FacesError {
    /// The list that this program was built with is broken.
    #[error("the list of the face tracker's files is broken: {0}")]
    List(#[from] serde_json::Error),
    /// A file is not there.
    #[error("--faces: {path} cannot be read ({problem}); `{install}` fetches it into node_modules")]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// What the system says.
        problem: std::io::Error,
        /// The command that fetches it.
        install: String,
    },
    /// A file of another version.
    #[error(
        "--faces: {path} is not the file of the version that this demo was made for; `{install}` fetches that"
    )]
    Differs {
        /// The file that differs, inside the folder of `--faces`.
        path: PathBuf,
        /// The command that fetches the right one.
        install: String,
    },
}

#[derive(Debug, Deserialize)]
struct List {
    cdn: String,
    files: BTreeMap<String, File>,
}

/// One file of an npm package.
#[derive(Debug, Clone, Deserialize, Serialize)]
struct File {
    package: String,
    version: String,
    path: String,
    bytes: usize,
    /// As in the `integrity` attribute (W3C Subresource Integrity): `sha384-` and base64.
    integrity: String,
}

impl File {
    /// Its address below a CDN of npm packages.
    fn address(&self) -> String {
        format!("{}@{}/{}", self.package, self.version, self.path)
    }
}

/// Where the page gets the tracker from.
pub(super) struct Faces {
    list: List,
    /// What is served here; nothing when the CDN does it.
    served: BTreeMap<String, Bytes>,
}

/// The page's JSON: where the face tracker comes from.
#[derive(Debug, Serialize)]
pub(super) struct Source<'a> {
    here: bool,
    base: &'a str,
    files: &'a BTreeMap<String, File>,
}

impl Faces {
    /// Reads the files from `directory`, which is a `node_modules` or has one; without it the CDN serves them.
    pub(super) fn read(directory: Option<&Path>) -> Result<Self, FacesError> {
        let list: List = serde_json::from_str(LIST)?;
        let mut served = BTreeMap::new();
        if let Some(directory) = directory {
            let inner = directory.join("node_modules");
            let root = if inner.is_dir() { &inner } else { directory };
            for file in list.files.values() {
                served.insert(file.address(), take(root, file, &list)?);
            }
        }
        Ok(Self { list, served })
    }

    /// What the page has to know.
    pub(super) fn source(&self) -> Source<'_> {
        let here = !self.served.is_empty();
        Source { here, base: if here { HERE } else { &self.list.cdn }, files: &self.list.files }
    }

    /// The file at this address below [`HERE`].
    pub(super) fn get(&self, address: &str) -> Option<Bytes> {
        self.served.get(address).cloned()
    }

    /// What the tracker may fetch, as sources of a content security policy.
    pub(super) fn sources(&self) -> String {
        if !self.served.is_empty() {
            return "'self'".to_owned();
        }
        let mut sources: Vec<String> = self
            .list
            .files
            .values()
            .map(|file| format!("{}{}@{}/", self.list.cdn, file.package, file.version))
            .collect();
        sources.sort();
        sources.dedup();
        sources.join(" ")
    }
}

fn take(root: &Path, file: &File, list: &List) -> Result<Bytes, FacesError> {
    let path = root.join(&file.package).join(&file.path);
    match std::fs::read(&path) {
        Ok(bytes) if integrity(&bytes) == file.integrity => Ok(bytes.into()),
        Ok(_) => Err(FacesError::Differs { path, install: install(list) }),
        Err(problem) => Err(FacesError::Missing { path, problem, install: install(list) }),
    }
}

fn integrity(bytes: &[u8]) -> String {
    format!("sha384-{}", STANDARD.encode(digest(&SHA384, bytes)))
}

fn install(list: &List) -> String {
    let mut packages: Vec<String> =
        list.files.values().map(|file| format!("{}@{}", file.package, file.version)).collect();
    packages.sort();
    packages.dedup();
    format!("npm install --ignore-scripts {}", packages.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_directory_the_cdn_is_named_by_package_and_version_and_nothing_is_served() {
        let faces = Faces::read(None).unwrap();
        let sources = faces.sources();
        assert_eq!(
            sources,
            "https://cdn.jsdelivr.net/npm/@tensorflow/tfjs-backend-wasm@4.22.0/ \
             https://cdn.jsdelivr.net/npm/@vladmandic/face-api@1.7.15/"
        );
        assert!(!faces.source().here);
        let library = &faces.list.files["library"];
        assert_eq!(faces.get(&library.address()), None);
        for file in faces.list.files.values() {
            assert_eq!(file.integrity.len(), "sha384-".len() + 64, "{file:?}");
        }
    }

    #[test]
    fn a_directory_without_the_files_or_with_others_is_refused_with_the_command_that_helps() {
        let directory = tempfile::tempdir().unwrap();
        let missing = Faces::read(Some(directory.path())).err().unwrap().to_string();
        let command =
            "npm install --ignore-scripts @tensorflow/tfjs-backend-wasm@4.22.0 @vladmandic/face-api@1.7.15";
        assert!(missing.contains("cannot be read") && missing.contains(command), "{missing}");
        let list: List = serde_json::from_str(LIST).unwrap();
        let root = directory.path().join("node_modules");
        for file in list.files.values() {
            let path = root.join(&file.package).join(&file.path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "something else").unwrap();
        }
        let differs = Faces::read(Some(directory.path())).err().unwrap().to_string();
        assert!(differs.contains("not the file of the version") && differs.contains(command), "{differs}");
    }

    #[test]
    fn the_hash_is_that_of_subresource_integrity() {
        // W3C Subresource Integrity, section 3.5: `alert('Hello, world.');`
        let expected = "sha384-H8BRh8j48O9oYatfu5AZzq6A9RINhZO5H16dQZngK7T62em8MUt1FLm52t+eX6xO";
        assert_eq!(integrity(b"alert('Hello, world.');"), expected);
    }
}
