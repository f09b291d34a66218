// SPDX-License-Identifier: GPL-2.0
/*
 * Fences of jobs, and the reservations that have them.
 *
 * See helpers.h.
 */
#include <linux/dma-fence-chain.h>
#include <linux/dma-fence-unwrap.h>
#include <linux/dma-fence.h>
#include <linux/dma-resv.h>

#include "../helpers.h"

struct dma_fence *kapi_dma_fence_get(struct dma_fence *fence)
{
	return dma_fence_get(fence);
}

void kapi_dma_fence_put(struct dma_fence *fence)
{
	dma_fence_put(fence);
}

bool kapi_dma_fence_is_signaled(struct dma_fence *fence)
{
	return dma_fence_is_signaled(fence);
}

void kapi_dma_fence_set_error(struct dma_fence *fence, int error)
{
	dma_fence_set_error(fence, error);
}

bool kapi_dma_fence_begin_signalling(void)
{
	return dma_fence_begin_signalling();
}

void kapi_dma_fence_end_signalling(bool cookie)
{
	dma_fence_end_signalling(cookie);
}

struct dma_fence_chain *kapi_dma_fence_chain_alloc(void)
{
	return dma_fence_chain_alloc();
}

void kapi_dma_fence_chain_free(struct dma_fence_chain *chain)
{
	dma_fence_chain_free(chain);
}

long kapi_dma_fence_wait_others(struct dma_fence *fence, u64 context,
				unsigned long timeout)
{
	struct dma_fence_unwrap cursor;
	struct dma_fence *part;
	long left = max(timeout, 1UL);

	dma_fence_unwrap_for_each(part, &cursor, fence) {
		if (part->context == context)
			continue;
		left = dma_fence_wait_timeout(part, true, left);
		if (left <= 0) {
			dma_fence_put(cursor.chain);
			return left;
		}
	}
	return left;
}

int kapi_dma_resv_lock_interruptible(struct dma_resv *resv)
{
	return dma_resv_lock_interruptible(resv, NULL);
}

void kapi_dma_resv_unlock(struct dma_resv *resv)
{
	dma_resv_unlock(resv);
}
