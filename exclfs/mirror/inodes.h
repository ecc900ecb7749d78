/*
 * What inodes.c, places.c and backing.c share: the table, where each inode was seen last, a descriptor for it.
 * Included by mirror.h, and by nothing else.
 */
#ifndef EXCLFS_INODES_H
#define EXCLFS_INODES_H

static inline uint64_t mix(uint64_t value) {
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL;
    return value ^ (value >> 31);
}

struct key {
    dev_t dev;
    ino_t ino;
};

/* A file handle, where one is worth taking: bytes is 0 for none. */
enum { HANDLE_MAX = 128 }; /* MAX_HANDLE_SZ */
struct handle {
    int type;
    unsigned bytes;
    unsigned char data[HANDLE_MAX];
};

/* What a mount other than the root's forbids, or is (nested.c). */
enum { READ_ONLY = 1 << 0, NO_SUID = 1 << 1, NO_DEVICES = 1 << 2, NO_EXECUTION = 1 << 3, SERVED = 1 << 4 };

/* One object of the tree as the kernel knows it. There may be millions: benchmarks/memory.py has what one costs. */
struct inode {
    /* Identity: never changes. What a search looks at comes first: of many inodes each is in no cache. */
    struct key key;
    uint64_t nodeid;
    /* Of a view: the inode whose word and open files are also its own, with a reference. Else NULL. */
    struct inode *primary;
    struct inode *next_of_key, *next_of_nodeid; /* each under its shard */
    int64_t birth_seconds; /* 0 where the filesystem keeps no birth time */
    uint32_t birth_nanoseconds;
    uint32_t generation;
    atomic_ulong mount; /* by which it is reached; that of a directory never changes */

    /* Lifetime: one reference for the kernel while nlookup > 0, one for a non-zero word, one for each child whose
     * place is here, one for each view, one for each request at work. */
    uint64_t nlookup; /* under the key shard */
    atomic_uint references;

    /* What the policy set: written under the stripe held exclusively. Not of a view. */
    atomic_uint word;
    atomic_uint word_generation;
    atomic_uint frozen; /* questions that must be answered before the word may change */

    /* Of a directory: under which generation of the tree it was looked at, and whether it lies in a directory whose
     * names may not be removed: generation << 1 | covered. */
    atomic_ulong coverage;

    /* Who has it open, where that counts: under its io lock; the numbers change under its stripe held exclusively. Not
     * of a view. */
    struct open_file *opens;
    atomic_uint open_count, open_generation;

    /* Where it was seen last: under the place lock. */
    struct inode *parent;
    char *name; /* in `packed`, or allocated if it has become too long for that */

    /* A descriptor, if it has one: under the budget's lock. */
    struct inode *newer, *older; /* in the order of use */
    int fd;                      /* O_PATH, or -1 */
    unsigned fd_users;

    /* How it is open: under io_lock of the mirror's stripe. */
    int32_t backing_id; /* > 0 while open by passthrough */
    uint32_t passthrough_opens, plain_opens;
    bool backing_is_roots; /* the kernel writes through it with root's rights, else with nobody's */

    bool fd_pinned;        /* with the descriptor: kept until FORGET, for nothing else leads to it any more */
    bool fd_nested;        /* likewise: it keeps another mount than the root's busy, so it is not kept for long */
    bool fd_used;          /* likewise: since somebody looked last whether it still is */
    atomic_bool removed;   /* its last link went through this mirror; not of a view */
    atomic_bool viewed;    /* it has had views */
    atomic_bool has_moved; /* it has been reached by more than one mount, and is no directory */
    atomic_uchar limits;   /* of the mount by which it is reached; of the root's, 0 */
    uint8_t type;          /* S_IFMT bits, shifted */
    uint8_t name_room, handle_bytes;
    int handle_type;
    char packed[]; /* room for the name, and then the handle's data */
};

enum { SHARDS = 64 };

struct shard {
    pthread_mutex_t lock;
    struct inode **buckets;
    size_t size, count;
};

struct inode_table {
    struct shard by_key[SHARDS], by_nodeid[SHARDS];
    atomic_ulong known;
    atomic_ulong most_known; /* since memory was last given back */
    atomic_ulong next_nodeid;
    atomic_uint views; /* that were ever made: while there are none, every inode has one place */
};

/* inodes.c */
static inline mode_t inode_type(const struct inode *inode) { return (mode_t)inode->type << 12; }
/* The one of all views of an inode that has its word. */
static inline struct inode *primary_of(struct inode *inode) { return inode->primary != NULL ? inode->primary : inode; }
static inline bool has_views(const struct inode *inode) {
    return inode->primary != NULL || atomic_load_explicit(&inode->viewed, memory_order_relaxed);
}
int inodes_init(struct mirror *mirror);
void inodes_destroy(struct mirror *mirror);
bool same_birth(const struct inode *inode, const struct statx *attributes);
/* The primary inode of this key with a new reference, or NULL. attributes, if given, must show the same birth. */
struct inode *inode_by_key(struct mirror *mirror, struct key key, const struct statx *attributes);
struct inode *inode_by_nodeid(struct mirror *mirror, uint64_t nodeid); /* referenced, or NULL */
/* Finds or makes the inode that (parent, name) was just seen to be; fd may be -1. With lookups added to nlookup. */
struct inode *inode_seen(struct mirror *mirror, struct inode *parent, const char *name, int parent_fd,
                         const struct statx *attributes, unsigned lookups);
void inode_looked_up(struct mirror *mirror, struct inode *inode); /* once more by the kernel */
void inode_get(struct inode *inode);
void inode_put(struct mirror *mirror, struct inode *inode);
void inode_forget(struct mirror *mirror, uint64_t nodeid, uint64_t lookups);
void inode_gone(struct mirror *mirror, struct inode *inode); /* its last link is removed: the key is free again */
/* The inode and all its views, each with a reference: their number, at most `most`. */
enum { MOST_VIEWS = 256 };
unsigned inode_views(struct mirror *mirror, struct inode *inode, struct inode *views[MOST_VIEWS]);
void inode_handle(const struct inode *inode, struct handle *handle);

/* places.c */
void inode_moved(struct mirror *mirror, struct inode *inode, struct inode *parent, const char *name);
void inode_lost(struct mirror *mirror, struct inode *inode); /* nobody knows where it is */
/* A name of the inode went from one directory to another: by whichever views of them it was known. */
void inode_renamed(struct mirror *mirror, struct inode *inode, struct inode *from, const char *name, struct inode *to,
                   const char *new_name);
/* The path below the root, without a leading slash; at most size - 1 bytes, a deeper one begins with "...". */
size_t inode_path(struct mirror *mirror, struct inode *directory, const char *name, char *path, size_t size);
size_t inode_own_path(struct mirror *mirror, struct inode *inode, char *path, size_t size);
/* Where it was seen last; the parent comes with a reference, NULL for the root and for what has no known place. */
struct inode *inode_parent(struct mirror *mirror, struct inode *inode);
struct inode *inode_place(struct mirror *mirror, struct inode *inode, char name[NAME_MAX + 1]);

static inline struct key key_of(const struct statx *attributes) {
    return (struct key){
        .dev = makedev(attributes->stx_dev_major, attributes->stx_dev_minor),
        .ino = attributes->stx_ino,
    };
}

/* Of kernels before 5.8, which do not tell, all mounts are one. */
static inline uint64_t mount_of(const struct statx *attributes) { return attributes->stx_mnt_id; }

static inline bool same_key(struct key a, struct key b) { return a.ino == b.ino && a.dev == b.dev; }

/* backing.c */
#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x4000U /* since Linux 6.8; older ones give the id that can be used again */
#endif
enum { STATX_TOLD = STATX_BASIC_STATS | STATX_BTIME, STATX_WANTED = STATX_TOLD | STATX_MNT_ID_UNIQUE };
int backing_init(struct mirror *mirror);
void backing_destroy(struct mirror *mirror);
int backing_get(struct mirror *mirror, struct inode *inode); /* an O_PATH descriptor, or -errno */
void backing_put(struct mirror *mirror, struct inode *inode);
void backing_drop(struct mirror *mirror, struct inode *inode); /* at the inode's end */
int backing_pin(struct mirror *mirror, struct inode *inode);   /* keep a descriptor until FORGET; 0 or -errno */
void backing_unpin(struct mirror *mirror, struct inode *inode); /* a name leads to it again */
int backing_adopt(struct mirror *mirror, struct inode *inode, int fd); /* pin this one, which we own */
/* As backing_get, where this name just led to it: also if it is not where it was seen last. */
int backing_get_at(struct mirror *mirror, struct inode *inode, int parent_fd, const char *name);
void backing_sweep(struct mirror *mirror); /* closes what keeps other mounts busy and was not used since the last time */
bool backing_must_sweep(struct mirror *mirror);
int backing_reopen(struct mirror *mirror, int fd, int flags);  /* a real descriptor for an O_PATH one */
/* Before a descriptor is opened that stays open with a file or directory: false if there are too many. */
bool open_begins(struct mirror *mirror);
void open_closed(struct mirror *mirror);
bool backing_leads_to(struct mirror *mirror, struct inode *inode); /* the place where it was seen last still does */
int backing_stat(struct mirror *mirror, struct inode *inode, struct statx *attributes);
bool backing_handle(int fd, const char *name, struct handle *handle);
int backing_open_handle(int mount_fd, const struct handle *handle); /* O_PATH, or -errno */

#endif
