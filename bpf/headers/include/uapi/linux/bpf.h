/* SPDX-License-Identifier: Apache-2.0 */
/* libbcc's own headers include this name; nothing of it is needed. */
