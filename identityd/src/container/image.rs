//! Which image a container of containerd was started from, by the digest of its config.
//!
//! A container's record has the image's *name*, and names move. What Kubernetes starts has the digest beside it. For
//! all else a name is followed only if it was not touched since the container was made, and then only to an image with
//! the very layers on which the container's file system lies.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bonafide_proto::fingerprint::Digest;
use serde::Deserialize;
use tonic::transport::Channel;

use super::channel::answered;
use super::circuit::AskError;
use super::containerd::within;
use super::wire::containers::Container as Record;
use super::wire::content::ReadContentRequest;
use super::wire::content::content_client::ContentClient;
use super::wire::images::images_client::ImagesClient;
use super::wire::images::{GetImageRequest, Image};
use super::wire::snapshots::StatSnapshotRequest;
use super::wire::snapshots::snapshots_client::SnapshotsClient;

/// Where the CRI keeps what it knows about a container, and does not tell.
pub(crate) const METADATA: &str = "io.cri-containerd.container.metadata";

/// The largest index, manifest or config that is read, in bytes.
const CONTENT_MAX: usize = 1 << 20;
/// Images for different machines behind one name.
const VARIANTS_MAX: usize = 32;
/// Layers of an image. (overlayfs takes 500.)
const LAYERS_MAX: usize = 1024;
/// Containers whose image is remembered.
const REMEMBERED_MAX: usize = 1024;

/// The image of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pinned {
    /// The digest of its config.
    pub(crate) config: Digest,
    /// The manifests on the way to it.
    pub(crate) manifests: Vec<Digest>,
}

/// A container, for ever: namespace, ID, and when it was made.
type Made = (String, String, i64, i32);

/// The images that were found out. They stay, whatever becomes of their names.
#[derive(Debug, Default)]
pub(crate) struct Images {
    found: Mutex<HashMap<Made, Pinned>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    metadata: Versioned,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Versioned {
    image_ref: String,
}

/// An index, or a manifest.
#[derive(Deserialize)]
pub(crate) struct Manifest {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

#[derive(Deserialize)]
pub(crate) struct Config {
    rootfs: RootFs,
}

impl Manifest {
    /// Where it leads: to the config of a manifest, or to the manifests of an index.
    pub(crate) fn leads(self) -> Leads {
        match self.config {
            Some(config) => Leads::ToConfig(config.digest),
            None => Leads::ToManifests(self.manifests.into_iter().take(VARIANTS_MAX).map(|m| m.digest).collect()),
        }
    }
}

/// Names of contents, not yet known to be digests.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Leads {
    /// Of a config.
    ToConfig(String),
    /// Of manifests, [`VARIANTS_MAX`] at most.
    ToManifests(Vec<String>),
}

impl Config {
    /// The layers of the image, by their chain ID.
    pub(crate) fn layers(&self) -> Option<String> {
        chain(&self.rootfs.diff_ids)
    }
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// What the CRI noted when it made the container: the digest of the image's config.
pub(crate) fn metadata_image(record: &Record) -> Option<Digest> {
    let noted: Metadata = serde_json::from_slice(&record.extensions.get(METADATA)?.value).ok()?;
    noted.metadata.image_ref.strip_prefix("sha256:")?.parse().ok()
}

impl Images {
    /// The image, or why it cannot be known.
    ///
    /// # Errors
    /// Whatever keeps containerd from answering.
    pub(crate) async fn pinned(
        &self,
        channel: &Channel,
        namespace: &str,
        record: &Record,
    ) -> Result<Result<Pinned, String>, AskError> {
        let made = record.created_at.unwrap_or_default();
        let made = (namespace.to_owned(), record.id.clone(), made.seconds, made.nanos);
        if let Some(pinned) = self.found.lock().unwrap_or_else(PoisonError::into_inner).get(&made) {
            return Ok(Ok(pinned.clone()));
        }
        let pinned = match untouched(channel, namespace, record).await? {
            Ok(image) => find(&Store { channel, namespace }, record, image).await?,
            Err(why) => Err(why),
        };
        if let Ok(pinned) = &pinned {
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            if found.len() >= REMEMBERED_MAX {
                found.clear();
            }
            found.insert(made, pinned.clone());
        }
        Ok(pinned)
    }
}

/// What the image's name leads to, if it did so before the container was made.
async fn untouched(channel: &Channel, namespace: &str, record: &Record) -> Result<Result<Image, String>, AskError> {
    if record.image.is_empty() {
        return Ok(Err("its container was not started from an image".to_owned()));
    }
    let request = within(namespace, GetImageRequest { name: record.image.clone() })?;
    let image = answered(ImagesClient::new(channel.clone()).get(request).await)?.and_then(|found| found.image);
    let Some(image) = image else {
        return Ok(Err("the image it was started from is no longer known to containerd".to_owned()));
    };
    let at = |seconds: i64, nanos: i32| (seconds, nanos);
    let updated = image.updated_at.map(|time| at(time.seconds, time.nanos));
    let created = record.created_at.map(|time| at(time.seconds, time.nanos));
    match (updated, created) {
        (Some(updated), Some(created)) if updated <= created => Ok(Ok(image)),
        _ => Ok(Err("the name of its image was moved, or pulled again, since the container was made".to_owned())),
    }
}

/// The one image behind the name whose layers the container has.
async fn find(store: &Store<'_>, record: &Record, image: Image) -> Result<Result<Pinned, String>, AskError> {
    let unknown = |why: &str| Ok(Err(format!("the image of its container cannot be told: {why}")));
    let (Some(target), Some(layers)) = (image.target, store.layers(record).await?) else {
        return unknown("its file system is unknown");
    };
    let mut found: Vec<Pinned> = Vec::new();
    for (manifest, config, above) in store.variants(&target.digest).await? {
        let chain = store.content::<Config>(&config).await?.and_then(|config| config.layers());
        if chain.as_ref() == Some(&layers)
            && let Ok(config) = config.parse()
            && found.iter().all(|known| known.config != config)
        {
            let manifests = [Some(manifest), above].into_iter().flatten().filter_map(|digest| digest.parse().ok());
            found.push(Pinned { config, manifests: manifests.collect() });
        }
    }
    match (found.pop(), found.pop()) {
        (Some(only), None) => Ok(Ok(only)),
        (None, _) => unknown("no image of its name has its layers"),
        (Some(_), Some(_)) => unknown("two images of its name have its layers"),
    }
}

/// What containerd keeps in one namespace.
struct Store<'a> {
    channel: &'a Channel,
    namespace: &'a str,
}

/// A manifest, the config it leads to, and the index that leads to it.
type Variant = (String, String, Option<String>);

impl Store<'_> {
    /// The layers below the container's own file system, by their chain ID.
    async fn layers(&self, record: &Record) -> Result<Option<String>, AskError> {
        let request = StatSnapshotRequest { snapshotter: record.snapshotter.clone(), key: record.snapshot_key.clone() };
        let request = within(self.namespace, request)?;
        let stat = answered(SnapshotsClient::new(self.channel.clone()).stat(request).await)?;
        Ok(stat.and_then(|stat| stat.info).map(|info| info.parent))
    }

    async fn variants(&self, target: &str) -> Result<Vec<Variant>, AskError> {
        let Some(top) = self.content::<Manifest>(target).await? else { return Ok(Vec::new()) };
        let manifests = match top.leads() {
            Leads::ToConfig(config) => return Ok(vec![(target.to_owned(), config, None)]),
            Leads::ToManifests(manifests) => manifests,
        };
        let mut variants = Vec::new();
        for below in manifests {
            // Only the variant for this machine need be there.
            let manifest = self.content::<Manifest>(&below).await?;
            if let Some(Leads::ToConfig(config)) = manifest.map(Manifest::leads) {
                variants.push((below, config, Some(target.to_owned())));
            }
        }
        Ok(variants)
    }

    /// Stored JSON; `None` if it is not there.
    async fn content<T: for<'de> Deserialize<'de>>(&self, digest: &str) -> Result<Option<T>, AskError> {
        self.bytes(digest).await?.map(|bytes| stored(digest, &bytes)).transpose()
    }

    async fn bytes(&self, digest: &str) -> Result<Option<Vec<u8>>, AskError> {
        let request = within(self.namespace, ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 })?;
        let reading = answered(ContentClient::new(self.channel.clone()).read(request).await)?;
        let Some(mut reading) = reading else { return Ok(None) };
        let mut bytes = Vec::new();
        loop {
            match reading.message().await {
                Ok(Some(piece)) => bytes.extend_from_slice(&piece.data),
                Ok(None) => return Ok(Some(bytes)),
                // The first word of a stream can be that there is none.
                Err(status) => match answered::<()>(Err(status))? {
                    None | Some(()) => return Ok(None),
                },
            }
            if bytes.len() > CONTENT_MAX {
                return Err(AskError::garbage(format!("its content {digest} is longer than {CONTENT_MAX} bytes")));
            }
        }
    }
}

/// What a content says, if it is the one of this digest.
pub(crate) fn stored<T: for<'de> Deserialize<'de>>(digest: &str, bytes: &[u8]) -> Result<T, AskError> {
    if digest.parse() != Ok(Digest::of(bytes)) {
        return Err(AskError::garbage(format!("its content {digest} has another digest")));
    }
    serde_json::from_slice(bytes).map_err(|e| AskError::garbage(format!("its content {digest}: {e}")))
}

/// The chain ID of layers (OCI image specification, "Layer ChainID").
pub(crate) fn chain(diff_ids: &[String]) -> Option<String> {
    let (first, rest) = diff_ids.split_first()?;
    if diff_ids.len() > LAYERS_MAX || diff_ids.iter().any(|id| id.len() > 71) {
        return None;
    }
    let join = |above: String, id: &String| Digest::of(format!("{above} {id}").as_bytes()).to_string();
    Some(rest.iter().fold(first.clone(), join))
}

#[cfg(test)]
mod tests {
    use super::super::wire::containers::Any;
    use super::*;

    #[test]
    fn a_chain_id_is_of_all_layers_in_their_order() {
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        assert_eq!(chain(&[]), None);
        assert_eq!(chain(&ids(&["sha256:aa"])).unwrap(), "sha256:aa");
        let two = Digest::of(b"sha256:aa sha256:bb").to_string();
        assert_eq!(chain(&ids(&["sha256:aa", "sha256:bb"])).unwrap(), two);
        let three = Digest::of(format!("{two} sha256:cc").as_bytes()).to_string();
        assert_eq!(chain(&ids(&["sha256:aa", "sha256:bb", "sha256:cc"])).unwrap(), three);
        assert_eq!(chain(&ids(&[&"x".repeat(72)])), None);
    }

    #[test]
    fn the_cris_own_note_names_a_config() {
        let noted = |json: &str| {
            let any = Any { type_url: String::new(), value: json.as_bytes().to_vec() };
            metadata_image(&Record { extensions: [(METADATA.to_owned(), any)].into(), ..Default::default() })
        };
        let digest = Digest::of(b"config");
        let json = format!(r#"{{"Version":"v1","Metadata":{{"ID":"a","ImageRef":"{digest}"}}}}"#);
        assert_eq!(noted(&json), Some(digest));
        for none in ["", "{}", r#"{"Metadata":{"ImageRef":"docker.io/a:1"}}"#, r#"{"Metadata":{"ImageRef":7}}"#] {
            assert_eq!(noted(none), None);
        }
    }
}
