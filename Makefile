# crate_sync: PostgreSQL tables mirrored in CrateDB.
#
#   make, make install, make installcheck   as with every PGXS extension
#   test/run                                everything that is tested
#   test/demo                               the main job on real input

MODULE_big = crate_sync
OBJS = crate_sync.o $(patsubst %.c,%.o,$(sort $(wildcard src/*/*.c src/*/*/*.c)))

EXTENSION = crate_sync
DATA = crate_sync--1.0.sql crate_sync--1.0--1.1.sql crate_sync--1.1.sql
PGFILEDESC = "crate_sync - keeps PostgreSQL tables mirrored in CrateDB"

REGRESS = $(patsubst sql/%.sql,%,$(sort $(wildcard sql/*.sql)))

PG_CPPFLAGS = -I$(srcdir)/src
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers -Wno-sign-compare \
	-Wno-ignored-attributes
SHLIB_LINK = -lcurl -lsqlite3

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(OBJS): $(wildcard src/*/*.h src/*/*/*.h)
