// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Registering, using and closing: nothing is held before it is used, what changes is sent and
//! nothing else, and a registration outlives what is mapped in it.

mod access;
mod life;
mod sent;
mod shared;

use super::support::family;
use crate::cases;
use crate::ktap::Family;

use self::access::{
    both_sides_at_the_same_time, both_sides_see_the_same, commands_of_blobs_are_jobs, host3d_guest,
    large, no_other_uses, only_prefetched_pages_appear, open_close, prefault_flag, read_only_reads,
    read_only_write_fails_alone, registering_touches_nothing, sixty_four_gib, unlisted_fails_alone,
    unmapped_part_fails_alone,
};
use self::life::{
    closed_while_busy, file_closed_first, malloc_and_free_again, malloc_left_registered,
    memory_unmapped_first, nothing_mapped, partly_mapped, remap_after_unmap,
};
use self::sent::{
    entries_of_a_huge_page, nothing_changes_nothing_sent, one_page_changes,
    one_page_changes_in_each_huge_page, prefetch_arguments, prefetch_stops_at_a_hole,
    prefetch_without_sparse, query,
};
use self::shared::{
    many_registrations_one_unmap, overlapping, read_only_and_writable, same_range_twice,
    two_contexts, two_files_share_memory,
};

pub(crate) const FAMILY: Family = family(
    "mirrored_basic",
    cases![
        open_close,
        both_sides_see_the_same,
        both_sides_at_the_same_time,
        registering_touches_nothing,
        only_prefetched_pages_appear,
        prefault_flag,
        sixty_four_gib,
        read_only_reads,
        read_only_write_fails_alone,
        unlisted_fails_alone,
        unmapped_part_fails_alone,
        commands_of_blobs_are_jobs,
        one_page_changes,
        one_page_changes_in_each_huge_page,
        nothing_changes_nothing_sent,
        entries_of_a_huge_page,
        overlapping,
        same_range_twice,
        read_only_and_writable,
        two_contexts,
        two_files_share_memory,
        many_registrations_one_unmap,
        prefetch_arguments,
        prefetch_stops_at_a_hole,
        prefetch_without_sparse,
        query,
        nothing_mapped,
        partly_mapped,
        remap_after_unmap,
        malloc_and_free_again,
        malloc_left_registered,
        closed_while_busy,
        file_closed_first,
        memory_unmapped_first,
        no_other_uses,
        host3d_guest,
        large,
    ],
);
