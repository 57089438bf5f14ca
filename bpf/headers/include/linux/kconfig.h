/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What libbcc force-includes in front of every program: the few names that
 * its own headers and ours take for granted. Stands in for the headers of a
 * kernel, which a node rarely carries; holds nothing that differs between
 * kernels.
 */
#ifndef KERSEY_KCONFIG_H
#define KERSEY_KCONFIG_H

#define CONFIG_BPF_SYSCALL 1

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;

typedef u8 uint8_t;
typedef u16 uint16_t;
typedef u32 uint32_t;
typedef u64 uint64_t;
typedef s8 int8_t;
typedef s16 int16_t;
typedef s32 int32_t;
typedef s64 int64_t;

typedef unsigned long size_t;
typedef unsigned long uintptr_t;
typedef _Bool bool;

#define true 1
#define false 0
#define NULL ((void *)0)
#define offsetof(type, field) __builtin_offsetof(type, field)
#define __always_inline inline __attribute__((always_inline))

#endif
