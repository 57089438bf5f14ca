/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libbcc's headers choose by version between helper names that we do not use.
 * The kernel has ignored the version of a loaded program since 5.0.
 */
#ifndef KERSEY_LINUX_VERSION_H
#define KERSEY_LINUX_VERSION_H

#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)

#endif
