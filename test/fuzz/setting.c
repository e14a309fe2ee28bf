/*-------------------------------------------------------------------------
 *
 * setting.c
 *		Texts that people write: crate_sync.target, target types; and those
 *		of unknown making that go into messages.
 *
 * The input: a letter for what it is, then the text.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "base/text.h"
#include "catalog/pg_type.h"
#include "fuzz.h"
#include "mb/pg_wchar.h"
#include "mirror/types.h"
#include "target/crate/http.h"
#include "target/target.h"

static void
one_target(const char *text)
{
	char	   *why = NULL;
	const TargetOps *ops;

	fuzz_must_not_throw();
	ops = target_ops_for(text, &why);
	if (ops != NULL && why != NULL)
		fuzz_fail("a target that is taken, and refused: %s", why);
	if (ops == NULL && why == NULL && text[strspn(text, " \t")] != '\0')
		fuzz_fail("a target that is refused without a reason");
	fuzz_check_message(why);
	/* the real one, of http.c */
	if (ops == &target_crate_ops)
		http_close(http_open(text, CurrentMemoryContext));
}

static void
one_type(const char *text, int which)
{
	static const struct
	{
		Oid			typid;
		int32		typmod;
	}			types[] =
	{
		{TEXTOID, -1}, {INT8OID, -1}, {NUMERICOID, -1}, {NUMERICOID, (10 << 16 | 2) + VARHDRSZ},
		{FLOAT8OID, -1}, {JSONBOID, -1}, {TEXTARRAYOID, -1}, {FLOAT8ARRAYOID, -1}, {BITOID, 3},
		{TIMESTAMPTZOID, -1}, {POINTARRAYOID, -1}, {INETOID, -1}, {UUIDOID, -1}, {BOOLOID, -1}
	};
	Oid			typid = types[which % lengthof(types)].typid;
	int32		typmod = types[which % lengthof(types)].typmod;
	TypeMapping map;
	TypeMapping again;
	CellEncoder enc;
	char	   *whole;

	types_map("a\"b", typid, typmod, which / lengthof(types) % 2, text, &map);

	/* what was understood can be understood again, and has an encoder */
	fuzz_must_not_throw();
	whole = psprintf("%s%s%s", map.type, map.storage ? " " : "", map.storage ? map.storage : "");
	for (const char *p = whole; *p; p++)
	{
		if (!isalnum((unsigned char) *p) && !strchr(" (),='_", *p))
			fuzz_fail("a type for DDL: %s", whole);
	}
	types_map("a\"b", typid, typmod, false, whole, &again);
	if (strcmp(map.type, again.type) != 0 || map.kind != again.kind ||
		strcmp(map.storage ? map.storage : "", again.storage ? again.storage : "") != 0)
		fuzz_fail("\"%s\" is read back as \"%s\" \"%s\"", whole, again.type,
				  again.storage ? again.storage : "");
	types_encoder(typid, typmod, &map, &enc);
	if (enc.encode == NULL)
		fuzz_fail("no encoder for \"%s\"", whole);
}

static void
setting_one(const char *data, int len)
{
	char	   *text;
	int			n;
	const char *p = data + 1;

	if (len < 2)
		return;
	switch (((unsigned char) data[0] - 'a') % 4)
	{
		case 0:
			text = fuzz_part(&p, data + len, &n);
			one_target(text);
			break;
		case 1:
			p++;
			text = fuzz_part(&p, data + len, &n);
			if (fuzz_valid(GetDatabaseEncoding(), text, n))
				one_type(text, (unsigned char) data[1] - 'a');
			break;
		case 2:
			/* any bytes, without an end */
			fuzz_must_not_throw();
			fuzz_check_message(target_clean_text(fuzz_exact(data + 1, len - 1), len - 1));
			break;
		case 3:
			/* an identifier */
			text = fuzz_part(&p, data + len, &n);
			if (fuzz_valid(GetDatabaseEncoding(), text, n))
			{
				fuzz_must_not_throw();
				fuzz_check_sql(target_quote_ident(text), &text, 1, NULL, 0);
			}
			break;
	}
}

const FuzzHarness fuzz_setting = {"setting", NULL, setting_one, true};
