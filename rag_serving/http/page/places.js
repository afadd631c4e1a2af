// Where in a document a passage is, in words.

const SHEETS = ["csv", "ods", "tsv", "xls", "xlsb", "xlsx"];
const SLIDES = ["odp", "ppt", "pptx"];

// Returns the page or slide of a passage, or nothing; sheets of a workbook are among the headings.
export function placeOf(name, page) {
  const suffix = name.split("#")[0].split(".").pop().toLowerCase();
  if (page === null || SHEETS.includes(suffix)) return "";
  return `${SLIDES.includes(suffix) ? "slide" : "page"} ${page}`;
}
