/* SPDX-License-Identifier: Apache-2.0 */
/* What of a request may be stated at all, and in which words. The request comes from the normal world. */
#ifndef VAMBRACE_REQUEST_H
#define VAMBRACE_REQUEST_H

#include "protocol.h"

#include <stdbool.h>

/* False: a version, flag or value that is not known, or reserved bytes that are not zero. */
bool request_valid(const struct realm_request *request);
bool sealing_valid(const struct sealing_request *request);
/* The claims' texts; NULL: no such partition, no such class. */
const char *partition_text(uint8_t cache_partition);
const char *class_text(uint8_t domain_class);

#endif
