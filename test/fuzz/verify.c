/*-------------------------------------------------------------------------
 *
 * verify.c (of the fuzzer)
 *		Comparing cells with what a target has: no crash, no error, and keys
 *		that are called the same are the same value.
 *
 * The input: a letter for the column's type, two cells.
 *
 *-------------------------------------------------------------------------
 */
#include "../../src/jobs/verify.c"

#include "fuzz.h"

static void
verify_one(const char *data, int len)
{
	static const struct
	{
		const char *type;
		CellKind	kind;
	}			types[] =
	{
		{"TEXT", CELL_TEXT}, {"BIGINT", CELL_INT}, {"REAL", CELL_FLOAT}, {"DOUBLE PRECISION", CELL_FLOAT},
		{"NUMERIC(10, 2)", CELL_NUMERIC}, {"NUMERIC(38, 0)", CELL_NUMERIC}, {"IP", CELL_TEXT},
		{"GEO_POINT", CELL_ARRAY}, {"GEO_SHAPE", CELL_JSON}, {"OBJECT(DYNAMIC)", CELL_JSON},
		{"ARRAY(NUMERIC(5, 1))", CELL_ARRAY}, {"ARRAY(ARRAY(REAL))", CELL_ARRAY},
		{"TIMESTAMP WITH TIME ZONE", CELL_TIMESTAMP}, {"BOOLEAN", CELL_BOOL}
	};
	TargetColumn col;
	CompareRule rule;
	VerifyRun	run;
	const char *p = data + 1;
	const char *end = data + len;
	char	   *a;
	char	   *b;
	int			alen;
	int			blen;
	int			which;
	StringInfoData ka;
	StringInfoData kb;

	if (len < 2)
		return;
	a = fuzz_part(&p, end, &alen);
	b = fuzz_part(&p, end, &blen);
	if (!fuzz_is_json(a, alen) || !fuzz_is_json(b, blen) ||
		isspace((unsigned char) *a) || isspace((unsigned char) a[alen - 1]) ||
		isspace((unsigned char) *b) || isspace((unsigned char) b[blen - 1]))
		return;
	which = ((unsigned char) data[0] - 'a') % lengthof(types);
	memset(&col, 0, sizeof(col));
	col.type = unconstify(char *, types[which].type);
	col.kind = types[which].kind;
	rule = rule_for(&col);
	memset(&run, 0, sizeof(run));
	run.cell_cxt = AllocSetContextCreate(CurrentMemoryContext, "cell", ALLOCSET_DEFAULT_SIZES);
	a = fuzz_exact(a, alen);
	b = fuzz_exact(b, blen);

	if (!cells_equal(&run, &rule, a, alen, a, alen))
		fuzz_fail("a cell is not equal to itself");
	initStringInfo(&ka);
	initStringInfo(&kb);
	append_key_cell(&run, &rule, a, alen, &ka);
	append_key_cell(&run, &rule, b, blen, &kb);
	if (!cells_equal(&run, &rule, a, alen, b, blen) && !rule.json &&
		ka.len == kb.len && memcmp(ka.data, kb.data, ka.len) == 0)
		fuzz_fail("%.*s and %.*s are one key and two values", alen, a, blen, b);
}

const FuzzHarness fuzz_verify = {"verify", NULL, verify_one, false, true};
