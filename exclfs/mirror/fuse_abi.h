/*
 * The kernel's FUSE interface, completed.
 *
 * <linux/fuse.h> is as old as the machine that compiles; the kernel that serves may be newer. What the headers of
 * Debian 12 (7.38) lack is defined here, with the values of include/uapi/linux/fuse.h of Linux 6.18.
 */
#ifndef EXCLFS_FUSE_ABI_H
#define EXCLFS_FUSE_ABI_H

#include <linux/fuse.h>
#include <sys/ioctl.h>

#define EXCLFS_FUSE_MINOR 41       /* what we speak: passthrough came with 7.40 (Linux 6.9) */
#define EXCLFS_FUSE_MINOR_LEAST 36 /* Linux 5.17: INIT has flags2 */

/* 7.39: statx */
#define EXCLFS_FUSE_STATX 52

struct exclfs_sx_time {
    int64_t tv_sec;
    uint32_t tv_nsec;
    int32_t reserved;
};

struct exclfs_statx {
    uint32_t mask;
    uint32_t blksize;
    uint64_t attributes;
    uint32_t nlink;
    uint32_t uid;
    uint32_t gid;
    uint16_t mode;
    uint16_t spare0[1];
    uint64_t ino;
    uint64_t size;
    uint64_t blocks;
    uint64_t attributes_mask;
    struct exclfs_sx_time atime;
    struct exclfs_sx_time btime;
    struct exclfs_sx_time ctime;
    struct exclfs_sx_time mtime;
    uint32_t rdev_major;
    uint32_t rdev_minor;
    uint32_t dev_major;
    uint32_t dev_minor;
    uint64_t spare2[14];
};

struct exclfs_statx_in {
    uint32_t getattr_flags;
    uint32_t reserved;
    uint64_t fh;
    uint32_t sx_flags;
    uint32_t sx_mask;
};

struct exclfs_statx_out {
    uint64_t attr_valid;
    uint32_t attr_valid_nsec;
    uint32_t flags;
    uint64_t spare[2];
    struct exclfs_statx stat;
};

/* 7.39: direct I/O and mmap together; 7.40: passthrough */
#define EXCLFS_DIRECT_IO_ALLOW_MMAP (1ULL << 36)
#define EXCLFS_PASSTHROUGH (1ULL << 37)
#define EXCLFS_FOPEN_PASSTHROUGH (1U << 7)

struct exclfs_backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};

#define EXCLFS_IOC_BACKING_OPEN _IOW(FUSE_DEV_IOC_MAGIC, 1, struct exclfs_backing_map)
#define EXCLFS_IOC_BACKING_CLOSE _IOW(FUSE_DEV_IOC_MAGIC, 2, uint32_t)

/* struct fuse_open_out since 7.40: what was padding is the backing id */
struct exclfs_open_out {
    uint64_t fh;
    uint32_t open_flags;
    int32_t backing_id;
};

/* struct fuse_init_out since 7.40 */
struct exclfs_init_out {
    uint32_t major;
    uint32_t minor;
    uint32_t max_readahead;
    uint32_t flags;
    uint16_t max_background;
    uint16_t congestion_threshold;
    uint32_t max_write;
    uint32_t time_gran;
    uint16_t max_pages;
    uint16_t map_alignment;
    uint32_t flags2;
    uint32_t max_stack_depth;
    uint32_t unused[6];
};

_Static_assert(sizeof(struct exclfs_init_out) == sizeof(struct fuse_init_out), "INIT reply keeps its size");
_Static_assert(sizeof(struct exclfs_open_out) == sizeof(struct fuse_open_out), "OPEN reply keeps its size");
_Static_assert(sizeof(struct exclfs_statx) == 256, "statx as in the kernel");

#endif
