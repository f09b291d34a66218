// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The end of registrations: when it is over for whoever closes them, and what is left of them
//! meanwhile.

use virtgpu_client::{compute, Exec, Memory, RegisterOptions};

use crate::ktap::{Driver, Family, Kernel, Outcome, TestResult};
use crate::support::memory::small_pages;
use crate::support::{child, job, Env, PAGE};
use crate::{cases, check_eq};

pub(crate) const FAMILY: Family = Family {
    name: "releases",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        charge_is_back_after_close: 120,
    ],
};

const P: u64 = PAGE as u64;

/// Whoever has waited for a job and then closes the registration may use the whole limit again.
fn charge_is_back_after_close(env: &Env) -> TestResult {
    const PAGES: u64 = 16;
    let rounds = env.iterations(400);
    child::run(|| {
        child::limit_memlock(PAGES * P)?;
        child::drop_privileges()?;
        let device = env.compute()?;
        let memory = small_pages(PAGES as usize * PAGE)?;
        let mut refused = 0;
        for round in 0..rounds {
            let userptr = match device.register(&memory, RegisterOptions::pinned()) {
                Ok(userptr) => userptr,
                Err(virtgpu_client::Errno::NOMEM) => {
                    refused += 1;
                    continue;
                }
                Err(error) => return Err(Outcome::from(error)),
            };
            let mut stream = compute::Stream::new();
            stream.add_u32(userptr.at(0), memory.len() as u64, 1);
            let fence = Exec::new(stream.as_bytes())
                .ring(round as u32 % 4)
                .buffers(&[userptr.handle()])
                .submit_with_fence(&device)?;
            if round % 2 == 0 {
                fence.wait(Some(job::LIMIT))?;
            } else {
                device.wait(userptr.handle())?;
            }
            userptr.close()?;
        }
        check_eq!(refused, 0, "registrations refused in {rounds} rounds");
        Ok(())
    })
}
