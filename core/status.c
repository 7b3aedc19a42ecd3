#include "status.h"

#include <string.h>

const char *vb_status_message(int status)
{
	static const char *const messages[] = {
		[VB_OK] = "no error",
		[VB_INVALID] = "an argument is out of its range",
		[VB_CLOSED] = "the window is closed",
		[VB_FAILED] = "the window has failed",
		[VB_AUTHENTICATION] = "a page failed authentication",
		[VB_PINNED] = "too many pages are pinned for this percentage",
		[VB_EXHAUSTED] = "a page was encrypted too often under one key",
		[VB_NO_CIPHER] = "libcrypto does not offer this cipher",
		[VB_SELF_TEST] = "the cipher failed its self-test",
		[VB_CRYPTO] = "libcrypto failed",
		[VB_NO_USERFAULTFD] = "userfaultfd cannot be opened",
		[VB_NO_MOVE] = "the kernel has no UFFDIO_MOVE",
		[VB_SWAP] = "swap is on and guest memory cannot be locked",
		[VB_PAGE_SIZE] = "the kernel's page size is not 4096",
		[VB_BUDGET] = "more pages would be pinned than the budget of the zone allows",
		[VB_UNPLACED] = "pages have no frame of those that were chosen for them",
	};

	if (status < 0)
		return strerror(-status);
	if ((size_t)status >= sizeof messages / sizeof *messages)
		return "unknown status";
	return messages[status];
}
