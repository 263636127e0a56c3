//! The seam to the library's facade over an opened store. Commands know this trait only; this file is the only one that names
//! the facade.

use varve::error::{Error, ErrorKind, Result};
use varve::service::{CheckProgress, CheckReport, DumpTarget, Durability, NewVolume, VolumeSummary};
use varve::units::VolumeId;

#[cfg(test)]
pub mod memory;

/// What commands do straight on the store.
pub trait Backend: Sized {
    /// Opens the store at a URL. With `create`, a place that is empty becomes a store.
    async fn open(store_url: &str, create: bool) -> Result<Self>;
    /// Creates a volume.
    async fn create_volume(&self, new: NewVolume) -> Result<VolumeSummary>;
    /// Lists volumes, also those that can still be brought back if asked to.
    async fn list_volumes(&self, include_destroyed: bool) -> Result<Vec<VolumeSummary>>;
    /// Finds the one volume with this id or name.
    async fn resolve(&self, id_or_name: &str) -> Result<VolumeId>;
    /// Looks at a volume.
    async fn volume(&self, id: VolumeId) -> Result<VolumeSummary>;
    /// Destroys a volume that nobody owns.
    async fn destroy_volume(&self, id: VolumeId) -> Result<VolumeSummary>;
    /// Brings a destroyed volume back.
    async fn undelete_volume(&self, id: VolumeId) -> Result<VolumeSummary>;
    /// Changes the durability of a volume that nobody owns.
    async fn set_durability(&self, id: VolumeId, durability: Durability) -> Result<VolumeSummary>;
    /// Verifies everything a volume refers to.
    async fn check(&self, id: VolumeId, progress: &mut dyn FnMut(CheckProgress)) -> Result<CheckReport>;
    /// Prints an object as a person can read it.
    async fn dump(&self, what: DumpTarget) -> Result<String>;
}

/// The backend of this program.
pub type Store = Unopened;

/// Stands in for the facade until it is part of the library: no store can be opened.
#[derive(Debug)]
pub enum Unopened {}

impl Backend for Unopened {
    async fn open(store_url: &str, _create: bool) -> Result<Self> {
        Err(Error::new(ErrorKind::Unsupported, format!("this build of varve has no facade to open {store_url} with")))
    }
    async fn create_volume(&self, _new: NewVolume) -> Result<VolumeSummary> {
        match *self {}
    }
    async fn list_volumes(&self, _include_destroyed: bool) -> Result<Vec<VolumeSummary>> {
        match *self {}
    }
    async fn resolve(&self, _id_or_name: &str) -> Result<VolumeId> {
        match *self {}
    }
    async fn volume(&self, _id: VolumeId) -> Result<VolumeSummary> {
        match *self {}
    }
    async fn destroy_volume(&self, _id: VolumeId) -> Result<VolumeSummary> {
        match *self {}
    }
    async fn undelete_volume(&self, _id: VolumeId) -> Result<VolumeSummary> {
        match *self {}
    }
    async fn set_durability(&self, _id: VolumeId, _durability: Durability) -> Result<VolumeSummary> {
        match *self {}
    }
    async fn check(&self, _id: VolumeId, _progress: &mut dyn FnMut(CheckProgress)) -> Result<CheckReport> {
        match *self {}
    }
    async fn dump(&self, _what: DumpTarget) -> Result<String> {
        match *self {}
    }
}
