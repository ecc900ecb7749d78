/*
 * What the operations share: one function for each, open files, listings.
 * Included by mirror.h, and by nothing else.
 */
#ifndef EXCLFS_OPERATIONS_H
#define EXCLFS_OPERATIONS_H

/* opens.c */
struct opener {
    pid_t pid; /* of the process, not of the thread; 0: this handle counts against nobody */
    uint64_t start_time;
    uid_t uid;
    struct timespec since;
};
struct open_file;
void open_counts(struct worker *worker, const struct request *request, struct open_file *file, uid_t owner);
void open_ends(struct mirror *mirror, struct open_file *file);
void open_released(struct mirror *mirror, const void *message, size_t size); /* what was just read, if it is a RELEASE */
/* Whether another process than the requester's has it open. */
bool opened_by_another(struct worker *worker, const struct request *request, struct inode *inode);
/* The openers of an inode, at most `size`; their number. */
size_t openers_of(struct mirror *mirror, struct inode *inode, struct opener *openers, size_t size);

/* the operations: each replies, or hands on */
void op_lookup(struct worker *, const struct request *);
void op_forget(struct worker *, const struct request *);
void op_batch_forget(struct worker *, const struct request *);
void op_getattr(struct worker *, const struct request *);
void op_statx(struct worker *, const struct request *);
void op_setattr(struct worker *, const struct request *);
void op_statfs(struct worker *, const struct request *);
void op_readlink(struct worker *, const struct request *);
void op_symlink(struct worker *, const struct request *);
void op_mknod(struct worker *, const struct request *);
void op_mkdir(struct worker *, const struct request *);
void op_link(struct worker *, const struct request *);
void op_unlink(struct worker *, const struct request *);
void op_rmdir(struct worker *, const struct request *);
void op_rename(struct worker *, const struct request *);
void op_open(struct worker *, const struct request *);
void op_create(struct worker *, const struct request *);
void op_tmpfile(struct worker *, const struct request *);
void op_read(struct worker *, const struct request *);
void op_write(struct worker *, const struct request *);
void op_flush(struct worker *, const struct request *);
void op_release(struct worker *, const struct request *);
void op_fsync(struct worker *, const struct request *);
void op_fallocate(struct worker *, const struct request *);
void op_lseek(struct worker *, const struct request *);
void op_copy_file_range(struct worker *, const struct request *);
void op_opendir(struct worker *, const struct request *);
void op_readdir(struct worker *, const struct request *);
void op_readdirplus(struct worker *, const struct request *);
void op_releasedir(struct worker *, const struct request *);
void op_fsyncdir(struct worker *, const struct request *);
void listing_missed(struct mirror *mirror, const struct inode *directory); /* what is in it has been looked up */
void op_setxattr(struct worker *, const struct request *);
void op_getxattr(struct worker *, const struct request *);
void op_listxattr(struct worker *, const struct request *);
void op_removexattr(struct worker *, const struct request *);

/* listing.c */
struct linux_dirent64 { /* getdents64(2) */
    uint64_t d_ino;
    int64_t d_off;
    unsigned short d_reclen;
    unsigned char d_type;
    char d_name[];
};
enum { LISTING_MAX = 32 << 10 };
struct listing {
    int fd;
    uint64_t offset;        /* of the entry that comes next, as the kernel is told */
    uint64_t position;      /* the same, as the filesystem tells */
    uint64_t buffer_begins; /* the position of the first entry in the buffer */
    struct statx_timestamp changed; /* of the directory, before the buffer was read */
    size_t at, end;         /* what of the buffer is still to be told */
    struct stuck *stuck;
    size_t stuck_count;
    char entries[LISTING_MAX] __attribute__((aligned(8)));
};
void listing_begin(struct listing *listing, int fd); /* takes the descriptor */
void listing_end(struct listing *listing);
int listing_seek(struct listing *listing, uint64_t offset); /* 0 or -errno */
const struct linux_dirent64 *listing_next(struct listing *listing, int *error); /* NULL at the end; -errno in *error */
uint64_t listing_offset(struct listing *listing, const struct linux_dirent64 *entry); /* for what comes next */
void listing_take(struct listing *listing, const struct linux_dirent64 *entry, uint64_t offset); /* it is told */

/* An open file: its number for the kernel is where it lies. */
struct manner {
    int flags;    /* those of a descriptor here */
    bool appends; /* with O_APPEND */
    bool roots;   /* by root */
};
struct open_file {
    struct inode *inode;
    struct manner how;
    atomic_int fd; /* -1 for passthrough, until something needs one */
    bool passthrough;
    atomic_uint failures_told;        /* of the mirror's failures to write back, how many it knows of */
    struct opener opener;             /* under the io lock of the inode, as the next two */
    struct open_file *next, **before; /* among the inode's opens */
};
static inline struct open_file *file_of(uint64_t fh) { return (struct open_file *)(uintptr_t)fh; }
pthread_mutex_t *io_lock(struct mirror *mirror, const struct inode *inode);
bool is_open(struct mirror *mirror, const struct inode *inode);

/* writeback.c */
int writeback_init(struct mirror *mirror); /* 0 or -errno */
void writeback_destroy(struct mirror *mirror);
void writeback_opened(struct mirror *mirror, struct open_file *file);
int writeback_sync(struct mirror *mirror, struct open_file *file, bool data_only); /* fsync: 0 or errno */

/* shared by operations */
void fill_attr(const struct mirror *mirror, const struct inode *inode, const struct statx *from, struct fuse_attr *to);
void fill_timeout(double seconds, uint64_t *whole, uint32_t *nanoseconds);
void fill_entry(struct mirror *mirror, struct inode *inode, const struct statx *attributes,
                struct fuse_entry_out *entry);
int handle_descriptor(struct mirror *mirror, uint64_t fh, bool writable); /* of an open file, owned by it; or -errno */

/* The inode that a request is about, with a reference; NULL after an ESTALE reply. */
struct inode *inode_of(struct worker *worker, const struct request *request);

#endif
