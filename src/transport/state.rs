// SPDX-License-Identifier: GPL-2.0

//! What has become of a device. The lock of the control queue protects it, so that a command is
//! sent in one state or held in another.

/// What the driver may do with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Commands can be sent.
    Running,
    /// The device may still write to memory, but is not trusted any more.
    Lost,
    /// The device has been reset.
    Reset,
    /// The machine sleeps, and the device knows nothing of the driver.
    #[cfg(CONFIG_PM_SLEEP)]
    Asleep,
}
