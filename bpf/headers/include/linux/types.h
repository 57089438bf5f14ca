/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's type names, for libbcc's copy of the bpf(2) header. */
#ifndef KERSEY_LINUX_TYPES_H
#define KERSEY_LINUX_TYPES_H

typedef u8 __u8;
typedef u16 __u16;
typedef u32 __u32;
typedef u64 __u64;
typedef s8 __s8;
typedef s16 __s16;
typedef s32 __s32;
typedef s64 __s64;

typedef u16 __be16;
typedef u32 __be32;
typedef u64 __be64;
typedef u16 __le16;
typedef u32 __le32;
typedef u64 __le64;
typedef u16 __sum16;
typedef u32 __wsum;

#define __aligned_u64 __u64 __attribute__((aligned(8)))

#endif
