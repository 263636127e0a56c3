//! The seam to the library's facade over an opened store. Commands know this trait only; this file is the only one that names
//! the facade.

use varve::error::Result;
use varve::service::{CheckProgress, CheckReport, DumpTarget, NewVolume, Swept, VolumeChange, VolumeSummary};
use varve::units::VolumeId;
use varve::volume::Admin;

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
    /// Changes a volume that nobody owns.
    async fn update_volume(&self, id: VolumeId, change: VolumeChange) -> Result<VolumeSummary>;
    /// Removes for good what was destroyed more than a day ago.
    async fn purge(&self) -> Result<Swept>;
    /// Verifies everything a volume refers to.
    async fn check(&self, id: VolumeId, progress: &mut (dyn FnMut(CheckProgress) + Send)) -> Result<CheckReport>;
    /// Prints an object as a person can read it.
    async fn dump(&self, what: DumpTarget) -> Result<String>;
}

/// The backend of this program: the library's facade. Its own methods have the names of the trait's, and are what is called.
pub type Store = Admin;

impl Backend for Admin {
    async fn open(store_url: &str, create: bool) -> Result<Self> {
        Admin::open(store_url, create).await
    }
    async fn create_volume(&self, new: NewVolume) -> Result<VolumeSummary> {
        Admin::create_volume(self, new).await
    }
    async fn list_volumes(&self, include_destroyed: bool) -> Result<Vec<VolumeSummary>> {
        Admin::list_volumes(self, include_destroyed).await
    }
    async fn resolve(&self, id_or_name: &str) -> Result<VolumeId> {
        Admin::resolve(self, id_or_name).await
    }
    async fn volume(&self, id: VolumeId) -> Result<VolumeSummary> {
        Admin::volume(self, id).await
    }
    async fn destroy_volume(&self, id: VolumeId) -> Result<VolumeSummary> {
        Admin::destroy_volume(self, id).await
    }
    async fn undelete_volume(&self, id: VolumeId) -> Result<VolumeSummary> {
        Admin::undelete_volume(self, id).await
    }
    async fn update_volume(&self, id: VolumeId, change: VolumeChange) -> Result<VolumeSummary> {
        Admin::update_volume(self, id, change).await
    }
    async fn purge(&self) -> Result<Swept> {
        Admin::purge(self).await
    }
    async fn check(&self, id: VolumeId, progress: &mut (dyn FnMut(CheckProgress) + Send)) -> Result<CheckReport> {
        Admin::check(self, id, progress).await
    }
    async fn dump(&self, what: DumpTarget) -> Result<String> {
        Admin::dump(self, what).await
    }
}
