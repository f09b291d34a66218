// SPDX-License-Identifier: GPL-2.0

//! Buffers in memory of the process, pinned or mirrored: what the registration has to remember, and
//! how the host is told of it.
//!
//! Such a buffer has exactly one handle, which cannot be shared: the memory belongs to the process,
//! and whoever closes the handle may rely on it that the device is done with the memory.

use super::releases::Releases;
use crate::{
    drm::Object,
    mirror::{
        Mirrored,
        Space, //
    },
    transport::control::{
        Command,
        RingQuota, //
    }, //
};
use kernel::{
    list::ListArc,
    prelude::*,
    sync::{
        atomic::{
            ordering::Full,
            AtomicFlag, //
        },
        Arc, //
    }, //
};

/// A registration of user memory.
pub(crate) struct Userptr {
    /// Pages registered.
    pub(crate) pages: usize,
    /// Guest-virtual address, 0 for a file.
    pub(crate) addr: u64,
    /// As registered.
    pub(crate) flags: u32,
    opened: AtomicFlag,
    /// Where it is released if a job had it last.
    releases: Arc<Releases>,
    /// What follows the page tables, if the pages are not pinned.
    mirrored: Option<Arc<Mirrored>>,
    /// The space of pinned memory that the device must not write.
    space: Option<Arc<Space>>,
}

impl Userptr {
    /// A registration of pinned memory that has no handle yet. `releases` are those of its file.
    pub(crate) fn new(releases: &Arc<Releases>, pages: usize, addr: u64, flags: u32) -> Self {
        Self {
            pages,
            addr,
            flags,
            opened: AtomicFlag::new(false),
            releases: releases.clone(),
            mirrored: None,
            space: None,
        }
    }

    /// A registration of mirrored memory, without handle yet.
    pub(crate) fn mirrored(
        releases: &Arc<Releases>,
        pages: usize,
        addr: u64,
        flags: u32,
        mirrored: Arc<Mirrored>,
    ) -> Self {
        Self {
            mirrored: Some(mirrored),
            ..Self::new(releases, pages, addr, flags)
        }
    }

    /// A registration of pinned memory that the device reaches through a space.
    pub(crate) fn in_space(
        releases: &Arc<Releases>,
        pages: usize,
        addr: u64,
        flags: u32,
        space: Arc<Space>,
    ) -> Self {
        Self {
            space: Some(space),
            ..Self::new(releases, pages, addr, flags)
        }
    }

    /// The space through which the device reaches the memory, if there is one.
    pub(crate) fn space(&self) -> Option<&Space> {
        let mirrored = self.mirrored.as_deref().map(Mirrored::space);
        mirrored.or(self.space.as_deref())
    }

    /// The file's registrations that are being released.
    pub(super) fn releases(&self) -> &Arc<Releases> {
        &self.releases
    }

    /// The space, if there is one, has ended; on an error the device is lost, and may still use it.
    /// Waits for notifier callbacks.
    pub(super) fn end(&self, ended: Result) {
        // The pins of a lost device are kept until it has been reset.
        if let Some(mirrored) = &self.mirrored {
            mirrored.end(ended);
        }
    }

    /// What follows the page tables, if the pages are not pinned.
    pub(crate) fn as_mirrored(&self) -> Option<&Mirrored> {
        self.mirrored.as_deref()
    }

    /// The handle is being closed.
    pub(crate) fn close(&self) {
        if let Some(mirrored) = &self.mirrored {
            mirrored.close_handle();
        }
    }

    /// Takes the one handle: the memory belongs to the process that registered it, and the handle
    /// cannot be handed on.
    ///
    /// # Errors
    ///
    /// [`EACCES`] if there is a handle already.
    pub(crate) fn open(&self) -> Result {
        if self.opened.xchg(true, Full) {
            return Err(EACCES);
        }
        Ok(())
    }
}

/// Has the host create the resource of `object`, and attach it to a context, and waits for both.
/// The commands take room of `quota`.
///
/// Dropping the object afterwards, whatever the outcome, tells the host to forget it, and waits
/// until it has.
///
/// # Errors
///
/// [`ENODEV`], [`EBUSY`] if there was no room in the ring or no response, [`ERESTARTSYS`] on a
/// fatal signal, that of the host.
pub(crate) fn create_on_host(
    quota: &Arc<RingQuota>,
    object: &Object,
    create: ListArc<Command>,
    attach: Option<ListArc<Command>>,
) -> Result {
    let control = &object.gpu().control;
    let created = create.clone_arc();
    let attached = attach.as_ref().map(|attach| attach.clone_arc());
    // One credit for both: who holds one must not wait for another.
    let commands = Iterator::chain(core::iter::once(&create), attach.as_ref());
    let mut credit = control.credit(quota, commands)?;
    let attach = match attach {
        Some(attach) => Some((credit.split(&attach)?, attach)),
        None => None,
    };
    object.host.set_sent(created.clone());
    control
        .add(create, credit)
        .inspect_err(|_| object.host.set_not_sent())?;
    if let Some((attach_credit, attach)) = attach {
        control.add(attach, attach_credit)?;
    }
    control.kick();

    control.wait_killable(&created)?.to_result()?;
    if let Some(attached) = attached {
        control.wait_killable(&attached)?.to_result()?;
    }
    // Lets the command go, which is not needed any more.
    let _ = object.host.creation();
    Ok(())
}
