// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Capability sets: the guest asks which there are, and what is in them. Nothing here changes.

use virtgpu_protocol::virtio_gpu::{self as wire, response};
use zerocopy::little_endian::U32;

use super::{parse, with_body, Failed, Outcome};
use crate::device::Device;
use crate::queues::control::Response;

impl Device {
    pub(super) fn get_capset_info(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::GetCapsetInfo>(bytes)?;
        let capset = self
            .options
            .capsets
            .get(request.capset_index.get() as usize)
            .ok_or(response::ERR_INVALID_PARAMETER)?;
        Ok(with_body(
            response::OK_CAPSET_INFO,
            &wire::ResponseCapsetInfo {
                capset_id: U32::new(capset.id),
                capset_max_version: U32::new(capset.version),
                capset_max_size: U32::new(capset.data.len() as u32),
                ..Default::default()
            },
        ))
    }

    pub(super) fn get_capset(&self, bytes: &[u8]) -> Result<Outcome, Failed> {
        let (request, _) = parse::<wire::GetCapset>(bytes)?;
        let capset =
            self.options.capsets.iter().find(|c| {
                c.id == request.capset_id.get() && request.capset_version.get() <= c.version
            });
        let capset = capset.ok_or(response::ERR_INVALID_PARAMETER)?;
        Ok(Outcome::Done(Response {
            kind: response::OK_CAPSET,
            body: capset.data.clone(),
        }))
    }
}
