// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Capability sets that the device offers.
//!
//! The first is that of the compute context. Those that `--capset` adds only look like the sets of
//! other hosts: contexts of them execute compute operations, too.

use std::str::FromStr;

use virtgpu_protocol::{
    compute::{CAPSET_ID, CAPSET_VERSION},
    virtio_gpu::capset,
};
use zerocopy::IntoBytes;

use crate::compute;

/// A capability set that the device offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capset {
    /// Its id.
    pub id: u32,
    /// Its newest version.
    pub version: u32,
    /// What `GET_CAPSET` returns.
    pub data: Vec<u8>,
}

impl Capset {
    /// That of the compute context.
    #[must_use]
    pub fn compute() -> Self {
        Self {
            id: CAPSET_ID,
            version: CAPSET_VERSION,
            data: compute::capset().as_bytes().to_vec(),
        }
    }
}

/// `ID:SIZE`: one that only looks like that of another host. Id 8 begins like AMD's: wire format
/// version, three numbers of a driver version, context type 1.
impl FromStr for Capset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (id, size) = text.split_once(':').ok_or("expected ID:SIZE")?;
        let id: u32 = id.parse().map_err(|e| format!("id: {e}"))?;
        let size: usize = size.parse().map_err(|e| format!("size: {e}"))?;
        if !(1..64).contains(&id) || id == CAPSET_ID {
            return Err(format!("id: 1 to 63, but not {CAPSET_ID}"));
        }
        if !(1..=4096).contains(&size) {
            return Err("size: 1 to 4096".into());
        }
        let mut data: Vec<u8> = if id == capset::AMD {
            [1u32, 1, 16, 0, 1]
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect()
        } else {
            (0..=255).cycle().take(size).collect()
        };
        data.resize(size, 0);
        Ok(Self {
            id,
            version: 1,
            data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let amd: Capset = "8:24".parse().unwrap();
        assert_eq!((amd.id, amd.data.len(), amd.data[16]), (8, 24, 1));
        assert_eq!("5:3".parse::<Capset>().unwrap().data, [0, 1, 2]);
        for bad in [
            "", "8", "8:0", "8:5000", "0:4", "64:4", "29:24", "x:1", "1:x",
        ] {
            assert!(bad.parse::<Capset>().is_err(), "{bad}");
        }
    }
}
